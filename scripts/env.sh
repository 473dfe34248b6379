#!/usr/bin/env bash
# The development environment: vLLM, prewarm's dependencies and the tools, pinned by constraints.txt.
#
#   scripts/env.sh path [PINS]   print where it belongs
#   scripts/env.sh make [PINS]   make it there if it is not there whole
#
# PINS is another file of pins, with another release of vLLM: constraints/vllm-0.18.1.txt.
#
# It is shared between checkouts that pin the same versions, so prewarm itself is not installed in
# it: the Makefile puts the checkout on PYTHONPATH.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
pins=${2:-constraints.txt}
root=${XDG_CACHE_HOME:-$HOME/.cache}/prewarm
need_gib=12

die() {
    echo "prewarm: error: $1" >&2
    echo "  hint: $2" >&2
    exit 4
}

command -v "$python" >/dev/null || die "there is no $python" "install Python 3.11 or newer, or: make PYTHON=/path/to/python"
[ -r "$pins" ] || die "there is no file of pins $pins" "these are there: constraints.txt $(echo constraints/*.txt)"
version=$("$python" -c 'import platform, sys; print(sys.implementation.name, platform.python_version(), platform.machine())')
environment_of() { # environment_of PINS
    echo "$root/env-$({ cat "$1"; echo "$version"; } | sha256sum | cut -c1-12)"
}
environment=$(environment_of "$pins")
marker=$environment/prewarm-env-is-complete

make_environment() {
    if [ -e "$marker" ]; then
        touch "$marker"
        return
    fi
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$python is $version; Python 3.11 or newer is needed" "make PYTHON=python3.11"
    scripts/system-packages.sh "$python"

    free_gib=$(($(df --output=avail -k "$root" | tail -1) / 1024 / 1024))
    [ "$free_gib" -ge "$need_gib" ] ||
        die "$root has $free_gib GiB free; vLLM, torch and CUDA's libraries need $need_gib GiB" \
            "free some space there, or set XDG_CACHE_HOME to a directory on a larger file system"

    # An environment without its marker was cut short. It cannot be built elsewhere and renamed,
    # because its scripts hold its own path.
    rm -rf "$environment"
    echo "making $environment (vLLM, torch, Triton: about 10 GB and 3 to 5 minutes, once)" >&2
    "$python" -m venv "$environment"
    "$environment/bin/python" scripts/requirements.py >"$environment/requirements.txt"
    "$environment/bin/python" -m pip install -qq --no-cache-dir --disable-pip-version-check \
        --constraint "$pins" --requirement "$environment/requirements.txt"
    "$environment/bin/python" -c 'import importlib.util as u, pathlib, sys
libraries = pathlib.Path(u.find_spec("torch").origin).parent / "lib"
sys.exit(not (libraries / "libtorch_cuda.so").exists())' ||
        die "pip chose a torch without CUDA, with which vLLM's extensions cannot load" \
            "see which package index pip is set up to use: pip config list"
    touch "$marker"

    ours=$(for each in constraints.txt constraints/*.txt; do
        [ ! -r "$each" ] || environment_of "$each"
    done)
    for other in "$root"/env-*; do
        [ ! -d "$other" ] || grep -qxF "$other" <<<"$ours" ||
            echo "note: $other belongs to other versions; if no checkout uses it: rm -rf $other" >&2
    done
}

case ${1:-} in
path)
    echo "$environment"
    ;;
make)
    mkdir -p "$root"
    exec 9>"$environment.lock"
    flock -n 9 || { echo "waiting for another checkout that makes $environment" >&2; flock 9; }
    make_environment
    ;;
*)
    echo "usage: scripts/env.sh path|make [PINS]" >&2
    exit 2
    ;;
esac
