# A vLLM image in which the GDN kernels of one deployment lie ready at a fixed path: nothing is
# installed, the layer is copied. No GPU is needed.
#
#   docker build -f docker/build-step.Dockerfile --build-arg TARGET=b200 -t my-vllm .
#   docker build -f docker/build-step.Dockerfile --target cache -t my-cache .   # the layer alone
#
# docker/copy.Dockerfile takes a layer that is in a registry; docker/Dockerfile installs instead of
# copying. The same base image compiles and serves: keys depend on its Triton, its ptxas and its
# Python, and host launchers on its C library.
ARG VLLM_IMAGE=vllm/vllm-openai:v0.25.1

FROM ${VLLM_IMAGE} AS kernels
COPY pyproject.toml README.md LICENSE /src/
COPY prewarm /src/prewarm
RUN python3 -m pip install --no-cache-dir /src
ARG TARGET=b200
ARG SERVE_ARGS="Qwen/Qwen3.5-397B-A17B-FP8 -dp 8 --enable-expert-parallel --gdn-prefill-backend triton"
RUN prewarm build --target "${TARGET}" --mount-path /opt/prewarm -o /tmp/image -- ${SERVE_ARGS}
# Of the three blobs of the image the layer is the largest.
RUN mkdir /cache && cd /tmp/image/blobs/sha256 && tar -xpzf "$(ls -S | head -n 1)" -C /cache

FROM scratch AS cache
COPY --from=kernels /cache /

FROM ${VLLM_IMAGE}
COPY --from=cache / /opt/prewarm/
ENV TRITON_CACHE_DIR="/opt/prewarm/io.triton.cache"
ENV TRITON_CACHE_AUTOTUNING="1"
