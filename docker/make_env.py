"""Writes `.env` for docker-compose.yaml: the settings of `.env.example`, and random keys that only this user can read.

    python3 docker/make_env.py

Standard library only. An `.env` that exists is kept: its keys are those of the volumes.
"""

import base64
import os
import secrets
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def keys() -> dict[str, str]:
    """Every variable of docker-compose.yaml that has no default."""
    return {
        "POSTGRES_PASSWORD": secrets.token_hex(20),
        "S3_ACCESS_KEY": secrets.token_hex(10),
        "S3_SECRET_KEY": secrets.token_hex(20),
        "AIRFLOW_JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW_SECRET_KEY": secrets.token_hex(32),
        "AIRFLOW_FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    }


def main(target: Path) -> int:
    settings = (REPOSITORY / ".env.example").read_text()
    lines = "".join(f"{name}={value}\n" for name, value in keys().items())
    try:
        with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{settings}\n# Made by docker/make_env.py.\n{lines}")
    except FileExistsError:
        print(f"{target} exists and is kept: its keys are those of the volumes. Remove both to start again.")
        return 0
    print(f"{target} has new keys")
    return 0


if __name__ == "__main__":
    sys.exit(main(REPOSITORY / ".env"))
