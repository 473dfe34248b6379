#!/usr/bin/env bash
# Plans and checks deployments with releases of vLLM, each in an environment of its own.
#
#   scripts/matrix.sh 0.18.1 0.32.0
#
# An environment takes 10 GB: one that was not there before is removed again after use. Manifests
# and results go to out/matrix, the table of all of them to out/matrix/table.md. What is there
# already is not done again. Ends with 1 if something failed, after everything was tried.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=out/matrix
environment=
failed=0

remove() {
    [ -z "$environment" ] || rm -rf "$environment" "$environment.lock"
    environment=
}
trap remove EXIT

run() { # run PYTHON ARGUMENT...
    PYTHONPATH=$PWD "$1" benchmarks/releases.py "${@:2}" --results "$out"
}

mkdir -p "$out"
for release in "$@"; do
    pins=constraints/vllm-$release.txt
    [ "$release" != 0.25.1 ] || pins=constraints.txt
    if path=$(scripts/env.sh path "$pins"); then
        [ -d "$path" ] || environment=$path
        { scripts/env.sh make "$pins" && run "$path/bin/python" run --target "${TARGET:-b200}"; } ||
            { echo "failed: $release" >&2; failed=1; }
        remove
    else
        echo "failed: $release" >&2
        failed=1
    fi
done
run "$(scripts/env.sh path)/bin/python" table >"$out/table.md"
cat "$out/table.md"
exit "$failed"
