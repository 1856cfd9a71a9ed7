"""OpenLineage: a published version as an output, the files of the corpus as its inputs.

Airflow's OpenLineage provider asks an operator for this when its task ends, if it is installed and has a transport.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from airflow.providers.openlineage.extractors import OperatorLineage
from openlineage.client.event_v2 import InputDataset, OutputDataset
from openlineage.client.facet_v2 import (
    JobFacet,
    data_quality_assertions_dataset,
    dataset_version_dataset,
    documentation_job,
    output_statistics_output_dataset,
    schema_dataset,
)

from retro_airflow import object_store
from retro_ops.plan import card, paths
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Plan, plan_from_json
from retro_ops.plan.series import Entry

MOST_INPUTS = 1000
"""Most files of a corpus that an event names: receivers limit its size."""

FIELDS = (
    ("chunks", "array", "token ids of a chunk"),
    ("neighbours", "array<int64>", "global ids of the nearest chunks, the nearest first; -1: none"),
    ("distances", "array<float32>", "squared L2 distances of the neighbours"),
)
"""Name, type and meaning of the fields that the dataset has for each chunk."""

LIMITS = (
    ("recall", "min_recall", True),
    ("fill_rate", "min_full_rows", True),
    ("near_duplicate", "max_duplicates", False),
    ("leaked", "max_leaked", False),
)
"""Figure of the card, the parameter that limits it, and whether that is a minimum."""


def of_published(plan_uri: str) -> OperatorLineage[Any, Any]:
    """Inputs and output of the run that published the plan at ``plan_uri``. Raises RetroError."""
    from retro_ops.storage import store

    plan = plan_from_json(store.read(plan_uri), plan_uri)
    series = object_store.read_series(plan.root, plan.dataset)
    entry = series.entry(series.number_of(paths.stage_folder(plan, "publish")) or series.current)
    return OperatorLineage(
        inputs=[InputDataset(*name(uri)) for uri in _corpus(plan)],
        outputs=[_version(plan, entry)],
        job_facets=_documentation(plan),
    )


def name(uri: str) -> tuple[str, str]:
    """Namespace and name of a location, as OpenLineage writes them: ``s3://bucket`` and the key, or ``file``."""
    scheme, _, path = uri.rpartition("://")
    if not scheme:
        return "file", uri
    bucket, _, key = path.partition("/")
    return f"{scheme}://{bucket}", key or "/"


def _corpus(plan: Plan) -> list[str]:
    """Files of the plan, each once. With a recipe they are the parts that `split-corpus` wrote."""
    files = dict.fromkeys(source.uri for shard in plan.shards for source in shard.sources)
    return list(files)[:MOST_INPUTS]


def _version(plan: Plan, entry: Entry) -> OutputDataset:
    from retro_ops.storage import store

    uri = paths.card_uri(plan, "json")
    found = card.read_card(store.read(uri), uri)
    fields = [schema_dataset.SchemaDatasetFacetFields(name, kind, meaning) for name, kind, meaning in FIELDS]
    facets: dict[str, Any] = {
        "schema": schema_dataset.SchemaDatasetFacet(fields=fields),
        "version": dataset_version_dataset.DatasetVersionDatasetFacet(str(entry["version"])),
        "dataQualityAssertions": data_quality_assertions_dataset.DataQualityAssertionsDatasetFacet(
            list(_assertions(found["quality"], plan.parameters))
        ),
    }
    statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
        rowCount=entry["counts"].get("chunks"), size=found["totals"]["stored_bytes"]
    )
    of_dataset = name(paths.dataset_folder(plan.root, plan.dataset))
    return OutputDataset(*of_dataset, facets=facets, outputFacets={"outputStatistics": statistics})


def _assertions(
    quality: Mapping[str, Mapping[str, float]], limits: Parameters
) -> Iterator[data_quality_assertions_dataset.Assertion]:
    """Each figure of the card against its limit. Training rows cannot leak, so they have no such limit."""
    for split, figures in quality.items():
        for figure, parameter, is_minimum in LIMITS:
            limit = getattr(limits, parameter)
            if limit is None or (figure == "leaked" and split == "train"):
                continue
            value = figures[figure]
            yield data_quality_assertions_dataset.Assertion(
                assertion=f"{parameter} of {split}",
                success=value >= limit if is_minimum else value <= limit,
                expected=f"{'>=' if is_minimum else '<='} {limit}",
                actual=f"{value:.4f}",
            )


def _documentation(plan: Plan) -> dict[str, JobFacet]:
    text = f"Publishes versions of the RETRO dataset {plan.dataset}: chunks with their nearest neighbours."
    return {"documentation": documentation_job.DocumentationJobFacet(text)}
