#!/usr/bin/env bash
# What the tests and the compiler need besides Python packages. Installs what is missing where it
# can (Debian or Ubuntu, as root); says what to install elsewhere.
#
#   scripts/system-packages.sh PYTHON
set -euo pipefail
python=$1

missing=()
need() { # need PACKAGE COMMAND...: the package is missing unless the command succeeds
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}

need gcc command -v gcc
need libc6-dev test -e /usr/include/stdio.h
need binutils command -v readelf
need make command -v make
need util-linux command -v flock
need openssl command -v openssl
need skopeo command -v skopeo
need umoci command -v umoci
need docker-registry command -v docker-registry
need buildah command -v buildah
need podman command -v podman
need runc command -v runc
need containerd command -v ctr
need catatonit command -v catatonit
need python3-venv "$python" -c 'import ensurepip, venv'
need python3-dev "$python" -c 'import pathlib, sysconfig
assert pathlib.Path(sysconfig.get_path("include"), "Python.h").exists()'

[ ${#missing[@]} -gt 0 ] || exit 0

if command -v apt-get >/dev/null && [ "$(id -u)" -eq 0 ]; then
    echo "installing ${missing[*]}" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update >&2
    apt-get -qq install --yes --no-install-recommends "${missing[@]}" >&2
else
    echo "prewarm: error: this machine lacks ${missing[*]} (Debian's names)" >&2
    echo "  hint: sudo apt-get update && sudo apt-get install ${missing[*]}" >&2
    exit 4
fi
