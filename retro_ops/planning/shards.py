"""Turns the files of a corpus or the parts of a recipe into the shards of a plan."""

import re
from argparse import Namespace
from collections.abc import Mapping, Sequence

from retro_ops.corpus import finding
from retro_ops.corpus.recipes.parser import parse_recipe
from retro_ops.errors import BadInputError
from retro_ops.plan import source_list
from retro_ops.plan.digests import line_limit
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Shard, Source, Split, check_name
from retro_ops.planning import recipe_shards
from retro_ops.progress import say
from retro_ops.sizes import counted
from retro_ops.storage import read_ahead, store
from retro_ops.uris import file_name


def of_patterns(places: Mapping[str, str | None], as_of: str | None) -> tuple[list[Shard], list[str]]:
    """One shard per file, and the dates of the dated files."""
    if not places["corpus"]:
        raise BadInputError(
            "--corpus is missing",
            "name the corpus, or a recipe: `build --recipe NAME`, or `plan --sources` with the list of `list-sources`",
        )
    files = {"train": finding.find_dated(places["corpus"], as_of)}
    if places["validation_corpus"]:
        files["val"] = finding.find_dated(places["validation_corpus"], as_of)
    shards = _shards(files["train"], "train") + _shards(files.get("val", []), "val")
    _check_names(shards)
    return shards, [file.date for of_split in files.values() for file in of_split if file.date]


def of_recipe(arguments: Namespace) -> tuple[list[Shard], dict[str, str | None]]:
    """The shards of a recipe, whose source files are already split, and the fields that name it in the plan."""
    listed = source_list.from_json(store.read(arguments.sources), arguments.sources)
    if (listed.root, listed.dataset) != (arguments.root.rstrip("/"), arguments.dataset):
        raise BadInputError(
            f"{arguments.sources} was listed for dataset {listed.dataset!r} in {listed.root}",
            "run `retro-ops list-sources` again",
        )
    recipe = parse_recipe(listed.text, listed.recipe)
    return recipe_shards.shards(listed, recipe), {"recipe": listed.recipe, "source_folder": listed.given_folder}


def of_benchmarks(parameters: Parameters) -> tuple[Source, ...]:
    """The files of the parameter ``benchmarks``. BadInputError if some cannot be read or are not texts."""
    if parameters.benchmarks is None:
        return ()
    from retro_ops.duplicates import contamination

    files = tuple(map(_source, finding.find(parameters.benchmarks, noun="benchmark", strict=True)))
    read = contamination.read(tuple(file.uri for file in files), parameters.memory_budget, line_limit(parameters))
    number, short = counted(len(read.places), "text"), int(read.too_short.sum())
    say(f"plan: benchmarks: {number} in {counted(len(files), 'file')}; {short:,} are too short to be compared")
    return files


def checked_day(text: str | None) -> str | None:
    if text is not None and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        raise BadInputError(f"--as-of {text!r} is not a date", "write it as YYYY-MM-DD")
    return text


def _shards(files: Sequence[finding.CorpusFile], split: Split) -> list[Shard]:
    def shard(file: finding.CorpusFile) -> Shard:
        return Shard(check_name("shard", _shard_name(file)), split, (_source(file.uri),))

    return sorted(read_ahead.side_by_side(shard, files), key=lambda shard: shard.name)


def _source(uri: str) -> Source:
    where = store.at(uri)
    return Source(uri, where.size(uri), where.fingerprint(uri))


def _shard_name(file: finding.CorpusFile) -> str:
    """``s3://bucket/corpus/00_wikipedia_en.jsonl.gz`` -> ``00_wikipedia_en``, after the date if its folder has one."""
    name = re.sub(r"\.(jsonl(\.gz|\.zst)?|parquet)$", "", file_name(file.uri))
    return name if file.date is None or file.date in name else f"{file.date}_{name}"


def _check_names(shards: list[Shard]) -> None:
    seen: dict[str, str] = {}
    for shard in shards:
        uri = shard.sources[0].uri
        if shard.name in seen:
            raise BadInputError(
                f"{seen[shard.name]} and {uri} would both be shard {shard.name!r}",
                "shards are named after their files: rename one of the two, for example to val_…",
            )
        seen[shard.name] = uri
