"""What the log of a failed task shows: one message, and a traceback only where nothing explains the error."""

import json
from typing import Any

import pytest
import structlog
from airflow.sdk._shared.logging.structlog import structlog_processors
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from retro_airflow import failures, notifications
from retro_airflow.dags.retro_dataset import dag

from retro_ops.errors import BadInputError, ConfigurationError, RetroError, TransientError


def logged(error: Exception) -> dict[str, Any]:
    """The line of the log for ``error``, made by the processors that Airflow uses for task logs."""
    shared, _, render = structlog_processors(json_output=True)
    logger = structlog.wrap_logger(
        structlog.ReturnLogger(),
        processors=[failures.message_alone, *shared, render],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_name="task",
    )
    try:
        raise error
    except Exception:
        return dict(json.loads(logger.exception("Task failed with exception")))


def test_a_failure_that_is_explained_is_its_message_alone() -> None:
    line = logged(failures.FinalFailureError("a.jsonl, line 3: no key 'text'\n  What to do: fix it"))
    assert line["event"] == "a.jsonl, line 3: no key 'text'\n  What to do: fix it"
    assert "error_detail" not in line
    assert "exception" not in line


def test_any_other_error_keeps_its_traceback() -> None:
    for error in (ValueError("x"), AirflowException("x")):
        line = logged(error)
        assert line["event"] == "Task failed with exception"
        assert line["exception"][0]["frames"]


@pytest.mark.parametrize(
    ("error", "final"),
    [(BadInputError, True), (ConfigurationError, True), (TransientError, False), (RetroError, False)],
)
def test_errors_of_the_stages_say_whether_a_retry_can_help(error: type[RetroError], final: bool) -> None:
    with pytest.raises(failures.FailureError, match="what\n  What to do: this") as caught, failures.airflow_errors():
        raise error("what", "this")
    assert isinstance(caught.value, AirflowFailException) is final


def test_refused_flags_point_to_a_stage_of_another_release() -> None:
    error = failures.of_exit_code("plan", 2, "", "in pod p")
    assert isinstance(error, failures.FinalFailureError)
    assert str(error).startswith("plan refused its flags (in pod p); the log above names the first of them")
    assert "of another release than retro-airflow" in str(error)


def test_what_the_user_needs_comes_first() -> None:
    said = str(failures.of_exit_code("embed-chunks", 78, "no GPU was found", "pod p on node n"))
    assert said.splitlines()[:2] == ["no GPU was found", "pod p on node n"]
    killed = str(failures.of_exit_code("embed-chunks", 137, "", "OOMKilled: limit 8GiB"))
    assert killed.startswith("embed-chunks was killed (signal 9): OOMKilled: limit 8GiB")
    assert "give it more memory" in killed


class Told:
    """The messages that tasks left, as Airflow's task instance hands them to a callback."""

    def __init__(self, messages: dict[str, str | list[str | None]]) -> None:
        self.messages = messages

    def xcom_pull(self, task_ids: str, key: str) -> Any:
        assert key == failures.CAUSE
        return self.messages.get(task_ids, [])


@pytest.mark.parametrize(
    ("messages", "shown"),
    [
        ({"shards.embed_chunks": "b is bad", "gate": "1 of 2 shards are not embedded"}, "1 of 2 shards"),
        ({"plan": "no corpus", "gate": "there is no plan"}, "no corpus"),
        ({"neighbours.retrieve_neighbours": [None, "out of memory"]}, "out of memory"),
        ({"neighbours.retrieve_neighbours": "no GPU"}, "no GPU"),
        ({}, "task_failure"),
    ],
    ids=["of shards the gate", "first task", "a mapped task", "a mapped task with one message", "none"],
)
def test_a_notification_has_the_message_that_explains_most(
    messages: dict[str, str | list[str | None]], shown: str
) -> None:
    context: Any = {"ti": Told(messages), "dag": dag, "reason": "task_failure"}
    assert notifications._failure(context).startswith(shown)
