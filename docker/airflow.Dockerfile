# Airflow with its Docker and Kubernetes providers and this package's DAGs and plugin, without machine learning libraries.
# Works with compose and with Airflow's official Helm chart (user 50000, group 0, bash, `airflow` on PATH).
ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS environment
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/airflow-environment
COPY requirements/airflow.txt requirements/compose.txt /requirements/
RUN --mount=type=secret,id=ca \
    if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi; \
    /opt/airflow-environment/bin/pip install -q -r /requirements/airflow.txt -r /requirements/compose.txt

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="retro-ops Airflow" \
      org.opencontainers.image.description="Airflow with the DAGs that build RETRO retrieval datasets"
RUN useradd --uid 50000 --gid 0 --home-dir /opt/airflow --create-home --shell /bin/bash airflow \
    && install -d -o airflow -g 0 -m 0775 /opt/airflow/logs
COPY --from=environment /opt/airflow-environment /opt/airflow-environment
COPY dags /opt/retro/dags
COPY plugins /opt/retro/plugins
COPY retro_ops /opt/retro/retro_ops
COPY runtime.toml docker/runtime.cpu.toml docker/runtime.gpu.toml /opt/retro/
COPY deploy /opt/retro/deploy
COPY demo/make_corpus.py docker/seed.py /opt/retro/seed/
ENV PATH=/opt/airflow-environment/bin:$PATH \
    PYTHONPATH=/opt/retro:/opt/retro/plugins PYTHONUNBUFFERED=1 \
    AIRFLOW_HOME=/opt/airflow \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/retro/dags \
    AIRFLOW__CORE__PLUGINS_FOLDER=/opt/retro/plugins \
    AIRFLOW__CORE__LOAD_EXAMPLES=False
WORKDIR /opt/airflow
USER 50000:0
CMD ["airflow", "version"]
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"
