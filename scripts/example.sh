#!/usr/bin/env bash
# From the arguments of `vllm serve` to an installed cache, without a GPU. Called by `make example`.
#
#   scripts/example.sh OUT SERVE_ARGS...
set -euo pipefail
out=$1
shift

prewarm() { "${PYTHON:-python3}" -m prewarm "$@"; }

step() { printf '\n== %s\n' "$*" >&2; }

step "1. Build: trace 'vllm serve $*' on a virtual B200, compile every Triton launch, pack an image"
prewarm build --target b200 -o "$out" --keep-manifest "$out.yaml" -- "$@"

step "2. Look: what the image holds"
prewarm show "$out"

step "3. Install: what a Dockerfile or an init container does with the image"
prewarm install "$out" --into "$out.installed" --print-env

step "4. Verify: every file is what was packed, and Triton's paths lead to this directory"
prewarm verify "$out.installed"

step "Done. The manifest, one argument a line, is $out.yaml; the image is the OCI layout $out"
