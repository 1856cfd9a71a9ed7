"""A SeaweedFS of its own for a test session or a benchmark."""

import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STAGES_BIN = Path(__file__).resolve().parents[2] / ".venv/stages/bin"
BUCKET = "test"
START_TIMEOUT_S = 60


@dataclass(frozen=True)
class S3:
    """The bucket, and the variables that lead to it."""

    bucket: str
    environment: dict[str, str]


@contextmanager
def seaweedfs(folder: Path, *, tls: bool, address: str = "127.0.0.1") -> Iterator[S3]:
    """Over TLS boto3 sends trailing checksums, as it does to S3 itself. ``address``: where it listens."""
    ports = dict(zip(("s3", "master", "volume", "filer", "admin"), _free_ports(5, address), strict=True))
    keys = {"AWS_ACCESS_KEY_ID": secrets.token_hex(10), "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}
    options = [f"-{name}.port={port}" for name, port in ports.items()]
    environment = {
        **keys,
        "AWS_ENDPOINT_URL": f"{'https' if tls else 'http'}://{address}:{ports['s3']}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    if tls:
        certificate, key = self_signed(folder)
        options += [f"-s3.cert.file={certificate}", f"-s3.key.file={key}"]
        environment["AWS_CA_BUNDLE"] = str(certificate)
    (folder / "data").mkdir()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(STAGES_BIN / "weed", "mini", f"-dir={folder / 'data'}", f"-ip={address}", f"-ip.bind={address}"),
                *("-master.telemetry=false", "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0"),
                *("-s3.port.lance=0", f"-bucket={BUCKET}", *options),
            ],
            env={**os.environ, **keys},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_for_bucket(environment, process, folder / "log")
        yield S3(f"s3://{BUCKET}", environment)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_bucket(environment: dict[str, str], process: subprocess.Popen[bytes], log: Path) -> None:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
        verify=environment.get("AWS_CA_BUNDLE"),
    )
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"")
        except (BotoCoreError, ClientError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text(errors='replace')[-3000:]}") from error
            time.sleep(0.3)
        else:
            return


def self_signed(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


def _free_ports(count: int, address: str) -> list[int]:
    """Ports free now, each with the one 10,000 above it, where SeaweedFS opens gRPC."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as probe, socket.socket() as above:
            probe.bind((address, 0))
            port = probe.getsockname()[1]
            try:
                above.bind((address, port + 10_000))
            except (OSError, OverflowError):
                continue
        if port not in found:
            found.append(port)
    return found
