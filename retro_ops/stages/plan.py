"""Corpus -> plan.json: which shards, from which files, made with which tokenizer and model.

``--refresh`` starts from the published version: what is not said is as it was there, and what did not change is used
again. ``--repair`` takes the corpus as that version (or a run) knew it, and leaves out of use what is damaged.
"""

import fnmatch
import json
import logging
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from retro_ops.corpus import json_lines
from retro_ops.corpus.recipes.parser import parse_recipe
from retro_ops.errors import BadInputError
from retro_ops.execution import shard_groups
from retro_ops.execution.plan_files import read_plan, write_plan
from retro_ops.plan import digests, estimate, paths, source_list
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import SPLITS, Identity, Plan, Shard, Source, Split, check_choice, check_name
from retro_ops.planning import base_version, recipe_shards
from retro_ops.progress import say
from retro_ops.sizes import parse_bytes
from retro_ops.storage import read_ahead, store
from retro_ops.versions import audit, history

if TYPE_CHECKING:
    from retro_ops.tokens.tokenizer import Tokenizer

HELP = "read the corpus, name its shards, check the parameters, and write the plan of a run"
PARAMETERS = tuple(field.name for field in fields(Parameters))
OF_ONE_RUN = ("batch_size", "device", "shard_index", "search_memory")
"""Not taken over from the published version: they suit the machines of a run, not the dataset."""

SAMPLED_SHARDS = 8
SAMPLED_BYTES = 2**17
"""Of each sampled shard of a split, to expect the number of chunks."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--root", required=True, help="folder or s3:// prefix that holds all datasets")
    parser.add_argument("--dataset", required=True, help="name of the dataset")
    parser.add_argument("--corpus", help="training files: a file, a folder or a pattern; {date} stands for a day")
    parser.add_argument("--validation-corpus", help="validation files, likewise")
    parser.add_argument("--sources", help="files of a recipe, as `list-sources` found them, instead of a corpus")
    for choice, meaning in (("indexed", "that others find"), ("queried", "that have neighbours")):
        parser.add_argument(
            f"--{choice}", metavar="A,B*", help=f"patterns of the names of the shards {meaning} (default: all)"
        )
    parser.add_argument("--as-of", metavar="YYYY-MM-DD", help="leave out files whose {date} is later")
    parser.add_argument("--output", required=True, help="plan to write")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--refresh", action="store_true", help="start from the published version, if there is one")
    how.add_argument("--repair", action="store_true", help="build again what is damaged or missing of it")
    parser.add_argument("--run", help="with --repair: of this run of the dataset, instead of what is published")
    parser.add_argument(
        "--shards", type=_names, default=[], metavar="A,B", help="with --repair: build these again, whatever they hold"
    )
    parser.add_argument("--quick", action="store_true", help="with --repair: compare lengths, not checksums")


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def run(arguments: Namespace, parameters: Parameters) -> None:
    check_name("dataset", arguments.dataset)
    series = history.read(arguments.root.rstrip("/"), arguments.dataset)
    if arguments.repair:
        plan, tokenizer = _repair(arguments, series), None
    else:
        plan, tokenizer = _from_corpus(arguments, parameters, series)
    for uri in (*paths.plans_after(arguments.output), paths.duplicates_uri(arguments.output)):  # Of an earlier try.
        store.at(uri).delete(uri)
    changed = _changes(plan, series)
    store.write(paths.changes_uri(arguments.output), (json.dumps(changed, indent=1) + "\n").encode())
    if tokenizer and not plan.base:
        _write_estimate(plan, tokenizer, arguments.output)
    write_plan(plan, arguments.output)
    size = sum(source.bytes for shard in plan.shards for source in shard.sources)
    say(
        f"plan: {len(plan.shards):,} shards, {size / 1e6:,.1f} MB of {plan.recipe or plan.corpus}: {arguments.output}",
        event="planned",
        shards=len(plan.shards),
        bytes=size,
    )


def _from_corpus(arguments: Namespace, parameters: Parameters, series: history.Series) -> "tuple[Plan, Tokenizer]":
    from retro_ops.tokens.tokenizer import Tokenizer

    places = {"corpus": arguments.corpus, "validation_corpus": arguments.validation_corpus}
    choice = {"index_shards": arguments.indexed, "query_shards": arguments.queried}
    if arguments.refresh and series.current:
        former = read_plan(series.plan_uri())
        given = {name: getattr(arguments, name) for name in PARAMETERS if hasattr(arguments, name)}
        of_this_run = {name: getattr(parameters, name) for name in OF_ONE_RUN}
        parameters = replace(former.parameters, **{**given, **of_this_run})
        places = {name: place or getattr(former, name) for name, place in places.items()}
        choice = {name: patterns or getattr(former, name) for name, patterns in choice.items()}
        if former.recipe and not (arguments.sources or places["corpus"]):
            raise BadInputError(
                f"the published version was made from the recipe {former.recipe}",
                "run `retro-ops list-sources --refresh` and `split-corpus` first, and name their list with --sources",
            )
    as_of = _checked_day(arguments.as_of)
    if arguments.sources:
        days: list[str] = []
        shards, places = _of_recipe(arguments)
    else:
        shards, days = _of_patterns(places, as_of)
    if as_of and not days:
        where = places.get("corpus") or places["recipe"]
        say(f"plan: {where} has no {json_lines.DATE}, so the files of today are taken for {as_of}")
    # Shards may have gone since the choice was made; a pattern that somebody just wrote is the name of some.
    for patterns in filter(None, (arguments.indexed, arguments.queried)):
        _check_patterns(shards, patterns)
    shards = _chosen(shards, choice["index_shards"], choice["query_shards"])
    parse_bytes(parameters.memory_budget)
    for amount in (parameters.index_memory, parameters.search_memory):
        if amount:
            parse_bytes(amount)
    tokenizer = Tokenizer(parameters.tokenizer, parameters.pad_id)
    plan = Plan(
        dataset=arguments.dataset,
        root=arguments.root.rstrip("/"),
        parameters=parameters,
        identity=_identity(parameters, tokenizer),
        shards=tuple(shards),
        **places,
        **choice,
        as_of=(as_of or max(days)) if days else None,
        condemned=base_version.read_condemned(arguments.root.rstrip("/"), arguments.dataset),
        supersedes=series.current,
        code_versions=dict(digests.CODE_VERSIONS),
    )
    return _with_base(_known_duplicates(plan, series), series) if arguments.refresh else plan, tokenizer


def _known_duplicates(plan: Plan, series: history.Series) -> Plan:
    """With the records that the published version is without, if nothing changed that could change them."""
    if not series.current or plan.parameters.duplicates == "keep":
        return plan
    former = read_plan(series.plan_uri())
    of_parameters = ("duplicates", "duplicate_threshold")
    same = all(getattr(former.parameters, name) == getattr(plan.parameters, name) for name in of_parameters)
    same &= [replace(shard, without=None) for shard in former.shards] == list(plan.shards)
    same &= [digests.sign_digest(former, s) for s in former.shards] == [
        digests.sign_digest(plan, s) for s in plan.shards
    ]
    return replace(plan, shards=former.shards, deduplicated=True) if same and former.deduplicated else plan


def _of_patterns(places: Mapping[str, str | None], as_of: str | None) -> tuple[list[Shard], list[str]]:
    """A shard for each file, and the days of those that have one."""
    if not places["corpus"]:
        raise BadInputError("--corpus is missing", "say where the documents are: a corpus, or a recipe with --sources")
    files = {"train": json_lines.find_dated(places["corpus"], as_of)}
    if places["validation_corpus"]:
        files["val"] = json_lines.find_dated(places["validation_corpus"], as_of)
    shards = _shards(files["train"], "train") + _shards(files.get("val", []), "val")
    _check_names(shards)
    return shards, [file.date for of_split in files.values() for file in of_split if file.date]


def _of_recipe(arguments: Namespace) -> tuple[list[Shard], dict[str, str | None]]:
    """The shards that its source files were split into."""
    listed = source_list.from_json(store.read(arguments.sources), arguments.sources)
    if (listed.root, listed.dataset) != (arguments.root.rstrip("/"), arguments.dataset):
        raise BadInputError(
            f"{arguments.sources} was listed for dataset {listed.dataset!r} of {listed.root}", "list the sources again"
        )
    recipe = parse_recipe(listed.text, listed.recipe)
    return recipe_shards.shards(listed, recipe), {"recipe": listed.recipe, "source_folder": listed.given_folder}


def _checked_day(text: str | None) -> str | None:
    if text is not None and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        raise BadInputError(f"--as-of {text!r} is not a day", "write it YYYY-MM-DD")
    return text


def _with_base(plan: Plan, series: history.Series) -> Plan:
    if not series.current:
        return plan
    base, why = base_version.published_base(plan, series)
    say(f"plan: starts from {why}" if base else f"plan: {why}", logging.INFO if base else logging.WARNING)
    return replace(plan, base=base)


def _repair(arguments: Namespace, series: history.Series) -> Plan:
    """The plan of what is to be mended, with its failed shards, and without what is damaged of it."""
    root = arguments.root.rstrip("/")
    if arguments.run:
        uri = audit.last_plan_uri(paths.plan_uri(root, arguments.dataset, arguments.run))
        former = read_plan(uri)
        # It starts from the version that the run started from, and gives way to one that came since.
        whole = replace(former, shards=audit.all_shards(uri), skipped=(), supersedes=former.supersedes or 0)
    else:
        whole = former = replace(read_plan(series.plan_uri()), supersedes=series.current)
    for name in arguments.shards:
        whole.shard(name)
    found = audit.of_no_use(audit.look(former, thorough=not arguments.quick), published=not arguments.run)
    for entry in found:
        said = f"plan: {entry.report}: {entry.why}"
        say(said, logging.WARNING, event="damaged", stage=entry.stage, shard=entry.shard)
    built = [shard.name for shard in former.shards]
    named = [name for name in arguments.shards if name in built]
    if not (found or named or arguments.run):
        return whole
    useless = tuple(audit.digests(former, found, named))
    condemned = tuple(dict.fromkeys((*base_version.read_condemned(root, arguments.dataset), *useless)))
    plan = replace(whole, condemned=condemned, code_versions=dict(digests.CODE_VERSIONS))
    # Where the specs themselves are damaged, what they were written from is still known by the plan alone.
    if not arguments.run and not any(entry.stage == "write-specs" for entry in found):
        plan = _with_base(plan, series)
    audit.check_sources(plan)
    base_version.condemn(root, arguments.dataset, useless)
    return plan


def _changes(plan: Plan, series: history.Series) -> dict[str, Any]:
    """What differs from the published version. ``nothing``: all of it would be as it is."""
    if not series.current:
        return {"nothing": False, "base": None, **asdict(base_version.changes([], plan.shards))}
    found = base_version.changes(read_plan(series.plan_uri()).shards, plan.shards)
    nothing = store.same_object(paths.stage_folder(plan, "write-specs"), series.folder())
    said = ", ".join(f"{len(getattr(found, kind)):,} {kind}" for kind in ("added", "changed", "removed"))
    say(
        f"plan: since version {series.current}: {said}, {found.unchanged:,} unchanged"
        + ("; nothing is to be done" if nothing else ""),
        event="changes",
    )
    return {"nothing": nothing, "base": series.current, **asdict(found)}


def _write_estimate(plan: Plan, tokenizer: "Tokenizer", output: str) -> None:
    expected = _expected(plan, tokenizer)
    uri = paths.estimate_uri(output)
    store.write(uri, (json.dumps(expected.as_json(), indent=1) + "\n").encode())
    say(f"plan: about {expected.chunks['all']:,} chunks to expect, if nothing is done yet ({uri}):")
    for line in estimate.table(expected):
        say(f"  {line}")


@dataclass(frozen=True)
class _Expected:
    """Counts of a split; ``largest``: chunks of its largest shard."""

    chunks: int
    largest: int
    documents: int


def _expected_counts(plan: Plan, split: Split, tokenizer: "Tokenizer") -> _Expected:
    """From the beginnings of some shards, tokenised."""
    from retro_ops.tokens.chunking import chunk_counts

    p, shards = plan.parameters, [shard for shard in plan.shards if shard.split == split]
    chunks, documents = [], []
    for shard in shards[:: max(1, -(-len(shards) // SAMPLED_SHARDS))]:
        source = shard.sources[0]
        try:
            texts, share = json_lines.sample(source.uri, digests.line_limit(p.memory_budget), SAMPLED_BYTES)
        except BadInputError as error:  # Its own task will fail; the other shards have theirs to do.
            say(f"plan: {error}", logging.WARNING)
            continue
        lengths = [len(ids) for ids in tokenizer.encode([document.text for document in texts])]
        chunks.append((source.bytes, share, int(chunk_counts(lengths, p.chunk_size).sum())))
        documents.append((source.bytes, share, len(texts)))
    sizes = [sum(source.bytes for source in shard.sources) for shard in shards]
    of_shards = [min(estimate.scaled(chunks, size), p.max_chunks or sys.maxsize) for size in sizes]
    return _Expected(sum(of_shards), max(of_shards), estimate.scaled(documents, sum(sizes)))


def _expected(plan: Plan, tokenizer: "Tokenizer") -> estimate.Estimate:
    from retro_ops.index import faiss_index, index_types, training
    from retro_ops.tokens.chunking import token_dtype

    p = plan.parameters
    there = {shard.split for shard in plan.shards}
    counts = {split: _expected_counts(plan, split, tokenizer) for split in SPLITS if split in there}
    work = estimate.Work(
        chunks={split: of.chunks for split, of in counts.items()},
        documents=sum(of.documents for of in counts.values()),
        shards=len(plan.shards),
        largest_shard=max(of.largest for of in counts.values()),
        chunk_size=p.chunk_size,
        token_bytes=token_dtype(plan.identity.vocabulary_size, p.token_dtype).itemsize,
        dimension=plan.identity.dimension,
        num_neighbours=p.num_neighbours,
        recall_sample=p.recall_sample,
        memory_budget=parse_bytes(p.memory_budget),
    )
    vectors = counts["train"].chunks
    index_type = p.index_type
    if index_type == index_types.AUTO:
        memory = parse_bytes(p.index_memory) if p.index_memory else None
        try:
            index_type, _ = index_types.choose_index_type(max(1, vectors), plan.identity.dimension, memory)
        except BadInputError as error:  # The number is expected, not counted: training decides.
            say(f"plan: {error}", logging.WARNING)
            index_type, _ = index_types.choose_index_type(max(1, vectors), plan.identity.dimension)
    index = index_types.make_index(index_type, plan.identity.dimension)
    sampled = min(vectors, p.max_training_vectors or training.training_vectors(index))
    shape = estimate.Index(faiss_index.list_count(index), faiss_index.bytes_per_vector(index), sampled)
    return estimate.estimate(work, shape)


def _shards(files: Sequence[json_lines.Found], split: Split) -> list[Shard]:
    def shard(file: json_lines.Found) -> Shard:
        where = store.at(file.uri)
        source = Source(file.uri, where.size(file.uri), where.fingerprint(file.uri))
        return Shard(check_name("shard", _shard_name(file)), split, (source,))

    return sorted(read_ahead.side_by_side(shard, files), key=lambda shard: shard.name)


def _chosen(shards: list[Shard], indexed: str | None, queried: str | None) -> list[Shard]:
    """``shards``, with those indexed and queried whose names match; None: as they are."""
    chosen = [
        replace(s, indexed=_matches(s, indexed, s.indexed), queried=_matches(s, queried, s.queried)) for s in shards
    ]
    idle = [shard.name for shard in chosen if not (shard.indexed or shard.queried)]
    if idle:
        some = ", ".join(idle[:10]) + (", …" if len(idle) > 10 else "")
        raise BadInputError(
            f"{len(idle):,} shards are neither indexed nor queried: {some}",
            "add them to --indexed or --queried, or leave their files out of the corpus",
        )
    check_choice(chosen)
    return chosen


def _matches(shard: Shard, patterns: str | None, otherwise: bool) -> bool:
    if patterns is None:
        return otherwise
    return any(fnmatch.fnmatchcase(shard.name, pattern) for pattern in shard_groups.names(patterns))


def _check_patterns(shards: Sequence[Shard], patterns: str) -> None:
    for pattern in shard_groups.names(patterns):
        if not any(fnmatch.fnmatchcase(shard.name, pattern) for shard in shards):
            some = ", ".join(shard.name for shard in shards[:10]) + (", …" if len(shards) > 10 else "")
            raise BadInputError(f"no shard has a name like {pattern!r}", f"there are {some}")


def _shard_name(file: json_lines.Found) -> str:
    """``s3://bucket/corpus/00_wikipedia_en.jsonl.gz`` -> ``00_wikipedia_en``; with the day, if a folder has it."""
    name = re.sub(r"\.jsonl(\.gz|\.zst)?$", "", file.uri.rpartition("/")[2])
    return name if file.date is None or file.date in name else f"{file.date}_{name}"


def _check_names(shards: list[Shard]) -> None:
    seen: dict[str, str] = {}
    for shard in shards:
        uri = shard.sources[0].uri
        if shard.name in seen:
            raise BadInputError(
                f"{seen[shard.name]} and {uri} would both be shard {shard.name!r}",
                "a shard is named by its file: rename one (validation files for instance val_…)",
            )
        seen[shard.name] = uri


def _identity(parameters: Parameters, tokenizer: "Tokenizer") -> Identity:
    """Load the model once, too, so that a run with a wrong name or type fails before any work."""
    from retro_ops.compute.device import Device
    from retro_ops.embedding.embedder import Embedder
    from retro_ops.index import index_types
    from retro_ops.tokens.chunking import token_dtype

    token_dtype(tokenizer.vocabulary_size, parameters.token_dtype)
    embedder = Embedder(parameters.model, Device("cpu", "only looked at"))
    if parameters.index_type != index_types.AUTO:  # Chosen once the vectors are counted, and always fit.
        index = index_types.make_index(parameters.index_type, embedder.dimension)
        index_types.check_mergeable(index, parameters.index_type)
    return Identity(
        tokenizer_digest=tokenizer.digest,
        vocabulary_size=tokenizer.vocabulary_size,
        pad_id=tokenizer.pad_id,
        model_digest=embedder.digest,
        dimension=embedder.dimension,
    )
