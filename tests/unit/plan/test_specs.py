"""Specs of datasets and indexes as JSON."""

import dataclasses

import pytest
from plans import PLAN

from retro_ops.plan import paths, specs


@pytest.mark.parametrize("root", ["s3://b/root", "/data/root", "relative/root"])
def test_specs_hold_paths_relative_to_themselves(root: str) -> None:
    plan = dataclasses.replace(PLAN, root=root)
    uri = paths.dataset_spec_uri(plan, "val")
    text = specs.dataset_spec_to_json(paths.dataset_spec(plan, "val"), uri)
    assert root not in text
    assert specs.dataset_spec_from_json(text, uri) == paths.dataset_spec(plan, "val")
    uri = paths.index_spec_uri(plan, "val")
    text = specs.index_spec_to_json(paths.index_shards(plan, "val"), uri)
    assert specs.index_spec_from_json(text, uri) == paths.index_shards(plan, "val")
