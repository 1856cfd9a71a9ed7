"""Stands before a stage command, so that a test can hold the stage open or let it fail.

RETRO_TEST_DOOR is a folder. Each call appends ``PID STAGE SHARD`` to ``journal``. While the file
``hold.STAGE.SHARD`` exists, the stage waits; if ``fail.STAGE.SHARD`` exists, it exits with the code
in it. Then this process *becomes* RETRO_TEST_STAGE, so its pid is the stage's.
"""

import json
import os
import shlex
import sys
import time
from pathlib import Path


def main() -> None:
    door = Path(os.environ["RETRO_TEST_DOOR"])
    argv = sys.argv[1:]
    stage = argv[0]
    shard = argv[argv.index("--shard") + 1] if "--shard" in argv else "-"
    with (door / "journal").open("a") as journal:
        journal.write(f"{os.getpid()} {stage} {shard}\n")
    fail = door / f"fail.{stage}.{shard}"
    if fail.exists():
        say("error", f"{shard} was told to fail")
        sys.exit(int(fail.read_text()))
    said = 0
    while (door / f"hold.{stage}.{shard}").exists():
        if said % 20 == 0:
            say("info", f"{shard} is held for the {said // 20 + 1}. time")
        said += 1
        time.sleep(0.05)
    command = shlex.split(os.environ["RETRO_TEST_STAGE"]) + argv
    os.execvp(command[0], command)


def say(level: str, message: str) -> None:
    print(json.dumps({"level": level, "message": message}), file=sys.stderr, flush=True)


main()
