"""Names of tokenizers and models that cannot be loaded."""

import subprocess
import sys

import pytest

from retro_ops.errors import ConfigurationError
from retro_ops.tokens import hub_names


def test_a_path_without_a_folder_is_refused_before_a_library_is_loaded() -> None:
    program = """
import sys
from retro_ops.embedding.model import open_model
from retro_ops.errors import ConfigurationError
from retro_ops.tokens.tokenizer import Tokenizer
for load in (Tokenizer.load, open_model):
    for name in ("/models/absent", "./absent", "../absent", "~/absent", sys.executable):
        try:
            load(name)
        except ConfigurationError as error:
            assert "there is no such folder" in str(error), error
        else:
            raise AssertionError(name)
print(sorted({"torch", "transformers", "sentence_transformers"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{program}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_name_on_the_hub_and_a_folder_are_not_refused(tmp_path: object) -> None:
    for name in ("t5-base", "sentence-transformers/all-MiniLM-L6-v2", str(tmp_path)):
        hub_names.check_folder("model", name)


@pytest.mark.parametrize("variable", hub_names.OFFLINE)
def test_the_variable_that_keeps_the_hub_away_is_named(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    for other in hub_names.OFFLINE:
        monkeypatch.delenv(other, raising=False)
    with pytest.raises(OSError, match="couldn't connect") as raised:  # What transformers says where it may not ask.
        AutoTokenizer.from_pretrained("no/such-thing", local_files_only=True)
    without = str(hub_names.not_loaded("model", "no/such-thing", raised.value))
    assert "Check your internet connection" in without
    monkeypatch.setenv(variable, "1")
    said = hub_names.not_loaded("model", "no/such-thing", raised.value)
    assert isinstance(said, ConfigurationError)
    assert f"{variable}=1 is set" in str(said)
    assert f"unset {variable}" in str(said)
    assert "internet connection" not in str(said)
