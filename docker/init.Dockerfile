# The init container: prewarm alone, which installs a cache where vLLM will serve from it.
# No torch, no Triton, no vLLM.
#
#   docker build -f docker/init.Dockerfile -t prewarm-init .
#
# Any base will do that has Python 3.11 or newer as `python`, with pip.
ARG BASE=python:3.12-slim

FROM ${BASE} AS packages
COPY pyproject.toml README.md LICENSE constraints.txt /src/
COPY prewarm /src/prewarm
RUN python -m pip install --no-cache-dir --target /opt/prewarm --constraint /src/constraints.txt /src

FROM ${BASE}
COPY --from=packages /opt/prewarm /opt/prewarm
ENV PYTHONPATH="/opt/prewarm"
USER 2000:2000
ENTRYPOINT ["python", "-m", "prewarm"]
