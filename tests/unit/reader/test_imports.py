"""Reading a dataset is a small installation."""

import subprocess
import sys


def test_the_reader_loads_numpy_and_nothing_else_that_must_be_installed() -> None:
    program = (
        "import sys; before = set(sys.modules); import retro_data;"
        "names = {name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names;"
        "print(sorted(name for name in names if not name.startswith('_')))"
    )
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {program}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "['numpy', 'retro_data', 'retro_ops']\n"
