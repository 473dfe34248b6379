# vLLM with prewarm beside it. One image for three things: the tuning job, the shards of a fleet
# build, and a server whose misses are told, counted and kept (docs/serving.md).
#
#   docker build -f docker/vllm.Dockerfile --build-arg VLLM_IMAGE=vllm/vllm-openai:v0.25.1 -t vllm-prewarm .
#
# What tunes and compiles must have the toolchain of what serves: make all of them from one base.
ARG VLLM_IMAGE=vllm/vllm-openai:v0.25.1

FROM ${VLLM_IMAGE}
COPY pyproject.toml README.md LICENSE /src/
COPY prewarm /src/prewarm
RUN python3 -m pip install --no-cache-dir /src && rm -r /src
