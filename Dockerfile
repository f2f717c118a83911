# Targets: `cpu` (without PyTorch), `cuda` (PyTorch, FP8), `tensorrt` (also builds and runs engines). See docs/guide/containers.md.
# Layers that change most often come last, so that a change of the code replaces only the last two.

# A tag changes over time. For reproducible images, give a digest and a snapshot of Debian:
# BASE_IMAGE=debian:bookworm-slim@sha256:..., APT_MIRROR=http://snapshot.debian.org/archive/debian/...
ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim

# The base of all targets: Debian with Python, certificates, and the user.
FROM ${BASE_IMAGE} AS system
ARG APT_MIRROR=""
ARG APT_SECURITY_MIRROR=""
COPY --chmod=755 deploy/image/apt-install.sh /usr/local/sbin/apt-install
RUN apt-install ca-certificates python3 \
    # Bytecode has hashes instead of timestamps, so that builds are reproducible.
    && python3 -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3.11 \
    && echo 'sd35:x:1000:1000::/cache:/usr/sbin/nologin' >> /etc/passwd \
    && echo 'sd35:x:1000:' >> /etc/group \
    && install -d -o 1000 -g 1000 /cache /cache/data

# Build tools, which are in no image.
FROM system AS tools
ARG APT_MIRROR
ARG APT_SECURITY_MIRROR
RUN apt-install python3-pip python3-venv
COPY --chmod=755 deploy/image/install.sh /usr/local/sbin/install-python
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG SOURCE_DATE_EPOCH=1767225600
# Environment variables, because not all builders pass build arguments to later stages. pip ignores empty ones.
ENV PIP_INDEX_URL=$PIP_INDEX_URL PIP_EXTRA_INDEX_URL=$PIP_EXTRA_INDEX_URL SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# The locked packages of each target.
FROM tools AS venv-cpu
COPY requirements/cpu.txt /requirements/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem,target=/run/secrets/ca.pem \
    --mount=type=cache,target=/root/.cache/pip \
    install-python venv /opt/sd35/venv /requirements/cpu.txt

FROM tools AS venv-cuda
COPY requirements/cuda.txt /requirements/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem,target=/run/secrets/ca.pem \
    --mount=type=cache,target=/root/.cache/pip \
    install-python venv /opt/sd35/venv /requirements/cuda.txt

FROM tools AS venv-tensorrt
COPY requirements/tensorrt.txt /requirements/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem,target=/run/secrets/ca.pem \
    --mount=type=cache,target=/root/.cache/pip \
    install-python venv /opt/sd35/venv /requirements/tensorrt.txt

# PyTorch and NVIDIA's libraries: several gigabytes. TORCH_INDEX_URL is an index with another build of the same version.
FROM tools AS torch
ARG TORCH_INDEX_URL=""
COPY requirements/torch.txt /requirements/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem,target=/run/secrets/ca.pem \
    --mount=type=cache,target=/root/.cache/pip \
    install-python torch /opt/sd35/torch /requirements/torch.txt "${TORCH_INDEX_URL}"

# The tool that lists the packages and licences of an image.
FROM tools AS inventory
COPY requirements/sbom.txt /requirements/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem,target=/run/secrets/ca.pem \
    --mount=type=cache,target=/root/.cache/pip \
    install-python venv /opt/inventory /requirements/sbom.txt
COPY deploy/image/inventory.py /opt/inventory/

# The project. Its code and the weights of the embedded model become separate layers.
FROM tools AS project
COPY requirements/build.txt /requirements/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem,target=/run/secrets/ca.pem \
    --mount=type=cache,target=/root/.cache/pip \
    install-python venv /opt/build /requirements/build.txt
WORKDIR /project
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src src
RUN install-python project /opt/build /opt/sd35

# The environment, health check, user and command of all targets.
FROM system AS runtime
LABEL org.opencontainers.image.title="sd35-fp8-mirror" org.opencontainers.image.licenses="Apache-2.0"
# The path of a secret is not a secret.
# hadolint ignore=DL3064
ENV PATH=/opt/sd35/app/bin:/opt/sd35/venv/bin:$PATH \
    LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HOME=/cache HF_HOME=/cache/huggingface HF_TOKEN_PATH=/run/secrets/hf_token \
    SD35_HOST=0.0.0.0 SD35_CACHE_DIR=/cache SD35_DATA_DIR=/cache/data
COPY --from=project /opt/sd35/weights /opt/sd35/app
EXPOSE 8000
STOPSIGNAL SIGTERM
# A container is healthy when it can generate images. Its first start may download a checkpoint: 16.3 GB for SD3.5
# Medium, 27.6 GB for Large. FP8 downloads as much, because it is made while the BF16 weights load.
HEALTHCHECK --interval=10s --timeout=5s --retries=3 --start-period=1h \
    CMD ["python", "-ISc", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('SD35_PORT') or 8000), timeout=4); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
WORKDIR /cache
USER 1000:1000
ENTRYPOINT ["sd35"]
CMD ["serve"]

FROM runtime AS runtime-cuda
# PyTorch needs CUDA 13. With NVIDIA_REQUIRE_CUDA, the container toolkit reports a driver that is too old.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility NVIDIA_REQUIRE_CUDA="cuda>=13.0" \
    SD35_CHECKPOINTS=auto TORCHINDUCTOR_CACHE_DIR=/cache/inductor
COPY --from=torch /opt/sd35/torch /opt/sd35/torch

# For each target: its files, the inventory of these files, and the target with both.
FROM runtime AS cpu-files
COPY --from=venv-cpu /opt/sd35/venv /opt/sd35/venv
COPY --from=project /opt/sd35/app /opt/sd35/app

FROM cpu-files AS cpu-inventory
COPY --from=inventory /opt/inventory /opt/inventory
RUN /opt/inventory/bin/python /opt/inventory/inventory.py /opt/sd35/venv/bin/python /cache/inventory

FROM cpu-files AS cpu
COPY --from=cpu-inventory --chown=0:0 /cache/inventory /usr/share/doc/sd35

FROM runtime-cuda AS cuda-files
ENV SD35_BACKEND=diffusers
COPY --from=venv-cuda /opt/sd35/venv /opt/sd35/venv
COPY --from=project /opt/sd35/app /opt/sd35/app

FROM cuda-files AS cuda-inventory
COPY --from=inventory /opt/inventory /opt/inventory
RUN /opt/inventory/bin/python /opt/inventory/inventory.py /opt/sd35/venv/bin/python /cache/inventory

FROM cuda-files AS cuda
COPY --from=cuda-inventory --chown=0:0 /cache/inventory /usr/share/doc/sd35

# Engines are built at the first start, for the GPU of the machine. Meanwhile the fallback serves requests.
FROM runtime-cuda AS tensorrt-files
ENV SD35_BACKEND=tensorrt SD35_FALLBACK=diffusers
COPY --from=venv-tensorrt /opt/sd35/venv /opt/sd35/venv
COPY --from=project /opt/sd35/app /opt/sd35/app

FROM tensorrt-files AS tensorrt-inventory
COPY --from=inventory /opt/inventory /opt/inventory
RUN /opt/inventory/bin/python /opt/inventory/inventory.py /opt/sd35/venv/bin/python /cache/inventory

FROM tensorrt-files AS tensorrt
COPY --from=tensorrt-inventory --chown=0:0 /cache/inventory /usr/share/doc/sd35
