# A vLLM image with a cache that was packed and pushed before, at the path that it was packed for:
# `prewarm build --mount-path /opt/prewarm`, then `prewarm push`.
#
#   docker build -f docker/copy.Dockerfile --build-arg CACHE=REPOSITORY@sha256:… -t my-vllm .
ARG VLLM_IMAGE=vllm/vllm-openai:v0.25.1
ARG CACHE

FROM ${CACHE} AS cache

FROM ${VLLM_IMAGE}
COPY --from=cache / /opt/prewarm/
ENV TRITON_CACHE_DIR="/opt/prewarm/io.triton.cache"
ENV TRITON_CACHE_AUTOTUNING="1"
