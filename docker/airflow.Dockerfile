# The image of Airflow itself: its Docker and Kubernetes providers, retro-airflow, no machine learning.
# Fits compose and Airflow's official Helm chart (user 50000, group 0, bash, `airflow` on PATH).
ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS environment
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/airflow-environment
COPY requirements/airflow.txt requirements/compose.txt /requirements/
RUN --mount=type=secret,id=ca \
    if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi; \
    /opt/airflow-environment/bin/pip install -q --require-hashes --no-deps \
    -r /requirements/airflow.txt -r /requirements/compose.txt
COPY pyproject.toml README.md LICENSE* /source/
COPY retro_ops /source/retro_ops
COPY plugins /source/plugins
RUN --mount=type=secret,id=ca \
    if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi; \
    /opt/airflow-environment/bin/pip install -q --no-deps /source /source/plugins

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="retro-ops Airflow" \
      org.opencontainers.image.description="Airflow with the DAGs that build RETRO retrieval datasets"
RUN useradd --uid 50000 --gid 0 --home-dir /opt/airflow --create-home --shell /bin/bash airflow \
    && install -d -o airflow -g 0 -m 0775 /opt/airflow/logs
COPY --from=environment /opt/airflow-environment /opt/airflow-environment
COPY dags /opt/retro/dags
COPY docker/runtime.cpu.toml docker/runtime.gpu.toml /opt/retro/
COPY demo/make_corpus.py docker/seed.py /opt/retro/seed/
ENV PATH=/opt/airflow-environment/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    AIRFLOW_HOME=/opt/airflow \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/retro/dags \
    AIRFLOW__CORE__LOAD_EXAMPLES=False
WORKDIR /opt/airflow
USER 50000:0
CMD ["airflow", "version"]
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"
