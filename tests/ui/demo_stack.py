"""The stack that the browser looks at: object store and Airflow of their own, with the demo corpus in them."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
STAGES_PYTHON = REPOSITORY / ".venv/stages/bin/python"


@dataclass(frozen=True)
class Demo:
    """A stack in which the demo has run once."""

    run_dir: Path

    @property
    def settings(self) -> dict[str, str]:
        """Ports, and keys of the store."""
        return dict(line.split("=", 1) for line in (self.run_dir / "env").read_text().splitlines())

    @property
    def ui(self) -> str:
        return f"http://127.0.0.1:{self.settings['AIRFLOW_PORT']}"

    def script(self, name: str, *arguments: str, **environment: str) -> None:
        command = [STAGES_PYTHON, REPOSITORY / "demo" / name, *arguments, "--run-dir", str(self.run_dir)]
        subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ | environment)

    def restart(self, **environment: str) -> None:
        self.script("stack.py", "down")
        self.script("stack.py", "up", **environment)
