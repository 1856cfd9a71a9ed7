"""Labels of mapped tasks, which Airflow keeps in a column of 250 characters."""

import pytest
from airflow.sdk import DAG
from retro_airflow import pipeline


@pytest.mark.parametrize(
    ("names", "label"),
    [
        ("00_a", "shard 00_a"),
        ("00_a,01_a", "shards 00_a to 01_a (2)"),
        (",".join(map(str, range(1000))), "shards 0 to 999 (1000)"),
        ("x" * 240, f"shard {'x' * 240}"),
        ("x" * 241, f"shard {'x' * 237}..."),
        ("x" * 200 + ",y," + "z" * 200, f"shards {'x' * 107}... to {'z' * 107}... (3)"),
    ],
)
def test_a_task_is_labelled_with_its_names(names: str, label: str) -> None:
    dag = DAG("d", schedule=None, user_defined_filters=pipeline.FILTERS)
    task = {"arguments": {"shard": names}}
    found = dag.get_template_env().from_string(pipeline.SHARD_LABEL).render(task=task)
    assert found == label
    assert len(found) <= 250
