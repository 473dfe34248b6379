#!/usr/bin/env bash
# Plans a few deployments with releases of vLLM, each in an environment of its own.
#
#   scripts/matrix.sh 0.18.1 0.32.0
#
# An environment takes 10 GB: one that was not there before is removed again after use. Manifests
# go to out/matrix. Ends with 1 if a plan failed, after all of them were tried.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=${TARGET:-b200}
environment=
failed=0

remove() {
    [ -z "$environment" ] || rm -rf "$environment" "$environment.lock"
    environment=
}
trap remove EXIT

plan() { # plan PYTHON NAME SERVE_ARG...
    local python=$1 name=$2
    shift 2
    PYTHONPATH=$PWD "$python" -m prewarm plan --target "$target" -o "out/matrix/$name.yaml" -- "$@" ||
        { echo "failed: $name" >&2; failed=1; }
}

mkdir -p out/matrix
for release in "$@"; do
    pins=constraints/vllm-$release.txt
    path=$(scripts/env.sh path "$pins")
    [ -d "$path" ] || environment=$path
    scripts/env.sh make "$pins"
    python=$path/bin/python
    for model in Qwen3.5-0.8B Qwen3.5-9B; do
        plan "$python" "$release-$model" "model-configs/$model" --gdn-prefill-backend triton
    done
    plan "$python" "$release-Qwen3.5-397B-A17B-FP8" model-configs/Qwen3.5-397B-A17B-FP8 \
        -dp 8 --enable-expert-parallel --gdn-prefill-backend triton
    remove
done
exit "$failed"
