# Stable Diffusion 3.5 as a service. Targets: `cpu` (no PyTorch), `tensorrt`, `cuda` (the default).
#
# Heavy layers first: packages, then the embedded model's weights, then the project's own code, so that a change of the code
# changes one small layer. The GPU's libraries come with PyTorch's wheels; the base is a plain Debian.

ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim

# What runs and what builds have in common: Debian's own Python.
FROM ${BASE_IMAGE} AS python
# DL3008: Debian's versions are those of the base's release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig/* \
        /var/lib/dpkg/*-old /var/log/*.log /var/log/apt \
    && find /usr/lib/python3* -name __pycache__ -prune -exec rm -rf {} +

FROM python AS build
# hadolint ignore=DL3008,DL3009
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1 PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1
WORKDIR /src

# The packages of the default installation, compiled once: a start does not have to, and the files say no time.
# An index of your own: --build-arg PIP_INDEX_URL=...; with a certificate of your own, mounted: --build-arg PIP_CERT=... (pip
# reads these from its environment, and each stage has to name them).
FROM build AS packages-cpu
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_CERT
ARG SOURCE_DATE_EPOCH
COPY requirements/image-cpu.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/sd35 \
    && /opt/sd35/bin/python -m pip install --require-hashes --no-deps -r requirements/image-cpu.txt
COPY deploy/image/seal.sh deploy/image/
RUN deploy/image/seal.sh /opt/sd35

# PyTorch's build for CUDA is pip's choice: its own packages, pinned by it, are what `torch` brings.
FROM packages-cpu AS packages-cuda
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_CERT
ARG SOURCE_DATE_EPOCH
ARG TORCH_INDEX_URL=https://pypi.org/simple
COPY requirements/image-cuda.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --upgrade-deps /opt/pip && /opt/pip/bin/pip --python /opt/sd35/bin/python install \
        --require-hashes --no-deps -r requirements/image-cuda.txt \
    && /opt/pip/bin/pip --python /opt/sd35/bin/python install --index-url "${TORCH_INDEX_URL}" torch==2.13.0
RUN deploy/image/seal.sh /opt/sd35

FROM packages-cuda AS packages-tensorrt
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_CERT
ARG SOURCE_DATE_EPOCH
COPY requirements/image-tensorrt.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/pip/bin/pip --python /opt/sd35/bin/python install \
        --require-hashes --no-deps --no-build-isolation -r requirements/image-tensorrt.txt
RUN deploy/image/seal.sh /opt/sd35

# The project: its weights apart from its code.
FROM build AS project
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_CERT
ARG SOURCE_DATE_EPOCH
COPY requirements/build.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/build && /opt/build/bin/pip install --require-hashes --no-deps -r requirements/build.txt \
    && python3 -m venv --without-pip /opt/sd35
COPY pyproject.toml README.md CHANGELOG.md LICENSE NOTICE ./
COPY src src
COPY deploy/image/seal.sh deploy/image/
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/build/bin/pip --python /opt/sd35/bin/python install --no-deps --root /code /wheels/*.whl \
    && site=opt/sd35/lib/python3.11/site-packages/sd35/checkpoints \
    && mkdir -p "/weights/${site}" && mv "/code/${site}/embedded" "/weights/${site}/" \
    && deploy/image/seal.sh /code /weights

# What is inside: a software bill of materials, and the licences.
FROM packages-cpu AS bill-cpu
COPY deploy/image/bill.py deploy/image/
COPY --from=project /code /
RUN /opt/sd35/bin/python deploy/image/bill.py /bill

FROM packages-cuda AS bill-cuda
COPY deploy/image/bill.py deploy/image/
COPY --from=project /code /
RUN /opt/sd35/bin/python deploy/image/bill.py /bill

FROM packages-tensorrt AS bill-tensorrt
COPY deploy/image/bill.py deploy/image/
COPY --from=project /code /
RUN /opt/sd35/bin/python deploy/image/bill.py /bill

# What all targets are: a user without rights, /cache for all that is written, and how they are asked and ended.
FROM python AS runtime
COPY deploy/image/user.sh /tmp/
RUN /tmp/user.sh && rm /tmp/user.sh
# DL3064: where a token may be mounted, no token.
# hadolint ignore=DL3064
ENV PATH=/opt/sd35/bin:${PATH} \
    HOME=/cache \
    HF_HOME=/cache/huggingface \
    HF_TOKEN_PATH=/run/secrets/hf_token \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SD35_HOST=0.0.0.0 \
    SD35_PORT=8000 \
    SD35_CACHE_DIR=/cache \
    SD35_DATA_DIR=/cache/data
WORKDIR /cache
EXPOSE 8000
STOPSIGNAL SIGTERM
# Healthy is ready: a large model may load, or be fetched, for minutes.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20m \
    CMD ["/opt/sd35/bin/python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ['SD35_PORT']}/readyz\", timeout=4)"]
USER 1000:1000
ENTRYPOINT ["sd35"]
CMD ["serve"]

FROM runtime AS cpu
COPY --from=packages-cpu /opt/sd35 /opt/sd35
COPY --from=project /weights /
COPY --from=bill-cpu /bill /usr/share/doc/sd35
COPY --from=project /code /

FROM runtime AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TORCHINDUCTOR_CACHE_DIR=/cache/torchinductor \
    TRITON_CACHE_DIR=/cache/triton \
    SD35_CHECKPOINTS=auto \
    SD35_AUTO_FALLBACK=sd35-mini

FROM gpu AS tensorrt
ENV SD35_BACKEND=tensorrt SD35_STANDBY=diffusers
COPY --from=packages-tensorrt /opt/sd35 /opt/sd35
COPY --from=project /weights /
COPY --from=bill-tensorrt /bill /usr/share/doc/sd35
COPY --from=project /code /

FROM gpu AS cuda
ENV SD35_BACKEND=diffusers
COPY --from=packages-cuda /opt/sd35 /opt/sd35
COPY --from=project /weights /
COPY --from=bill-cuda /bill /usr/share/doc/sd35
COPY --from=project /code /
