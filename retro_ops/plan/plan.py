"""The plan of a run (its shards, source files and parameters), and its JSON form."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NotRequired, TypedDict, TypeVar, get_args

from retro_ops.errors import BadInputError
from retro_ops.plan import documents, parameters
from retro_ops.plan.parameters import Parameters
from retro_ops.sizes import some

Split = Literal["train", "val"]

SPLITS: tuple[Split, ...] = get_args(Split)

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]*"
"""Dataset and shard names become folder names, so they contain no path separator and cannot be ``..``."""

LONGEST_NAME = 230
"""A file system takes 255 bytes; files are named after shards, with an ending."""

PLAN_FORMAT = 2
"""Format 1, which can be read, lacks the fields added with refreshing, which all have defaults."""

S = TypeVar("S", "Shard", "BaseShard")


@dataclass(frozen=True)
class Source:
    """One corpus file."""

    uri: str
    bytes: int
    fingerprint: str
    """Identifies the content, independent of name and time."""


@dataclass(frozen=True)
class Shard:
    """A part of the dataset that is built as one unit."""

    name: str
    split: Split
    sources: tuple[Source, ...]
    indexed: bool = True
    """Whether its chunks are in the index and can be found as neighbours."""
    queried: bool = True
    """Whether its chunks get neighbours."""
    without: Source | None = None
    """File of `find-duplicates` with the numbers of the duplicates to leave out; None if there are none."""
    contaminated: Source | None = None
    """The same for documents that hold benchmark texts."""

    @property
    def left_out(self) -> tuple[Source, ...]:
        """The files that list records to leave out."""
        return tuple(filter(None, (self.without, self.contaminated)))


@dataclass(frozen=True)
class Identity:
    """Digests and sizes of tokenizer and model at planning time, so that outputs of different ones cannot be mixed."""

    tokenizer_digest: str
    vocabulary_size: int
    pad_id: int
    model_digest: str
    dimension: int


@dataclass(frozen=True)
class BaseShard:
    """A shard of the base version. Digests identify its output folders."""

    name: str
    split: Split
    chunks: int
    """Number of chunks."""
    embeddings: str
    """Digest of its embeddings."""
    neighbours: str | None
    """Digest of its neighbours; None if they cannot be reused or the shard was not queried."""
    indexed: bool = True


@dataclass(frozen=True)
class Base:
    """The published version that a refresh starts from, with the digests of the outputs that it may reuse."""

    version: str
    """Folder of the version, relative to that of the dataset."""
    trained: str
    """Digest of the trained index."""
    index: str | None
    """Digest of the merged indexes; None if they cannot be reused."""
    tuning: str | None
    """Digest of the tuned nprobe and candidates; None to tune again."""
    shards: tuple[BaseShard, ...]
    keeps: bool = False
    """Whether it has kept neighbours (``keep_neighbours``), of which its neighbours are a view."""
    other_view: bool = False
    """Whether the plan takes other neighbours from what the base version found."""

    @functools.cached_property
    def by_name(self) -> dict[str, BaseShard]:
        return {shard.name: shard for shard in self.shards}

    def indexed(self, split: Split) -> tuple[BaseShard, ...]:
        """Shards of the base version's index for ``split``, in id order; see ``Plan.indexed``."""
        return _indexed(self.shards, split)


@dataclass(frozen=True)
class Plan:
    """The plan of a run: its shards, their source files and the parameters. All output paths follow from it."""

    dataset: str
    root: str
    """Folder or ``s3://`` prefix of all datasets."""
    parameters: Parameters
    identity: Identity
    shards: tuple[Shard, ...]
    skipped: tuple[str, ...] = ()
    """Names of failed shards that the run leaves out."""
    corpus: str | None = None
    """Path or pattern of the training corpus; None if the run uses a recipe."""
    validation_corpus: str | None = None
    """Path or pattern of the validation corpus."""
    as_of: str | None = None
    """Last day (``YYYY-MM-DD``) of the dated files that are used."""
    base: Base | None = None
    """Version whose outputs may be reused; None to build everything."""
    condemned: tuple[str, ...] = ()
    """Digests of damaged outputs, which are built again in another folder."""
    supersedes: int | None = None
    """Number of the version that was current at planning time; 0 if there was none, None if it is unknown."""
    code_versions: Mapping[str, int] | None = None
    """Code versions of the stages at planning time, so that paths stay valid when the code changes; None: today's."""
    recipe: str | None = None
    source_folder: str | None = None
    """Folder of the recipe's relative paths; None for the folder of the recipe."""
    index_shards: str | None = None
    """Patterns of the shards to index, kept for the next refresh; None for all."""
    query_shards: str | None = None
    """Patterns of the shards to query, kept for the next refresh; None for all."""
    deduplicated: bool = False
    """Whether `find-duplicates` has set ``without`` and ``contaminated`` in the shards."""
    benchmark_files: tuple[Source, ...] = ()
    """Files of the parameter ``benchmarks``."""

    @functools.cached_property
    def memo(self) -> dict[tuple[str, ...], str]:
        """Cache of the digests, since each depends on those of many shards."""
        return {}

    @functools.cached_property
    def is_condemned(self) -> frozenset[str]:
        return frozenset(self.condemned)

    @functools.cached_property
    def by_name(self) -> dict[str, Shard]:
        return {shard.name: shard for shard in self.shards}

    def shard(self, name: str) -> Shard:
        """The shard called ``name``. Raises BadInputError if there is none."""
        if name in self.by_name:
            return self.by_name[name]
        raise BadInputError(
            f"the plan of dataset {self.dataset!r} has no shard {name!r}",
            f"its shards are {some([shard.name for shard in self.shards])}",
        )

    def indexed(self, split: Split) -> tuple[Shard, ...]:
        """Shards of the index that the queries of ``split`` search, in id order.

        The validation index extends the training index, so training ids stay valid in it.
        """
        return _indexed(self.shards, split)

    def queried(self, split: Split) -> tuple[Shard, ...]:
        """Shards of ``split`` that get neighbours."""
        return tuple(s for s in self.shards if s.split == split and s.queried)

    def benchmarks_of(self, shard: Shard) -> tuple[Source, ...]:
        """Files with the benchmark texts that documents of ``shard`` are compared with; none for validation."""
        return self.benchmark_files if shard.split == "train" else ()

    def splits(self) -> tuple[Split, ...]:
        """Splits with a dataset spec, that is, with queried shards."""
        return tuple(split for split in SPLITS if self.queried(split))


def _indexed(shards: Sequence[S], split: Split) -> tuple[S, ...]:
    train = tuple(s for s in shards if s.split == "train" and s.indexed)
    return train if split == "train" else train + tuple(s for s in shards if s.split == "val" and s.indexed)


def check_choice(shards: Sequence[Shard]) -> None:
    """Raise BadInputError unless a training shard is indexed and, if there are any, a validation shard is queried."""
    if not any(shard.indexed for shard in shards if shard.split == "train"):
        raise BadInputError(
            "no training shard is indexed", "index some training shards; validation shards alone are not enough"
        )
    if not any(shard.queried for shard in shards):
        raise BadInputError("no shard is queried, so there are no neighbours to search", "query some shards")
    validation = [shard for shard in shards if shard.split == "val"]
    if validation and not any(shard.queried for shard in validation):
        raise BadInputError(
            "no validation shard is queried, so the validation index would never be searched",
            "query some validation shards as well (such as val_*), or leave out the validation corpus",
        )


def check_name(kind: str, name: str) -> str:
    """Return ``name`` when it is safe as a folder name, else raise BadInputError."""
    if not re.fullmatch(NAME_PATTERN, name) or len(name) > LONGEST_NAME:
        raise BadInputError(
            f"{kind} name {name[:LONGEST_NAME]!r} cannot be used as a folder name",
            f"use at most {LONGEST_NAME} letters, digits, '.', '_' and '-', and begin with a letter or digit",
        )
    return name


def category(shard: str) -> str:
    """Category of a shard: its name without numbers, ``00_wikipedia_en`` -> ``wikipedia_en``."""
    words = [word for word in re.split(r"[_-]", shard) if word and not word.isdigit()]
    return "_".join(words) or shard


ADDED_LATER: dict[str, Any] = {
    "indexed": True,
    "queried": True,
    "deduplicated": False,
    "keeps": False,
    "other_view": False,
    "benchmark_files": (),
    **dict.fromkeys(("without", "contaminated", "recipe", "source_folder", "index_shards", "query_shards")),
}
"""Later fields with their defaults, which are not written, so that plans without them keep their bytes."""


def as_written(value: Shard | BaseShard | Plan | dict[str, Any]) -> dict[str, Any]:
    """The JSON form of ``value``, without later fields that have their default."""
    document = value if isinstance(value, dict) else asdict(value)
    return {key: value for key, value in document.items() if key not in ADDED_LATER or value != ADDED_LATER[key]}


def plan_to_json(plan: Plan) -> str:
    document = as_written(plan)
    document["parameters"] = parameters.as_written(plan.parameters)
    document["shards"] = [as_written(shard) for shard in document["shards"]]
    if plan.base:
        document["base"] = as_written(document["base"])
        document["base"]["shards"] = [as_written(shard) for shard in document["base"]["shards"]]
    return json.dumps({"format": PLAN_FORMAT, **document}, indent=1) + "\n"


class _Document(TypedDict):
    format: Literal[1, 2]
    dataset: str
    root: str
    parameters: dict[str, Any]
    identity: Identity
    shards: list[Shard]
    skipped: list[str]
    base: NotRequired[Base | None]
    condemned: NotRequired[list[str]]
    supersedes: NotRequired[int | None]
    code_versions: NotRequired[dict[str, int] | None]
    deduplicated: NotRequired[bool]
    corpus: NotRequired[str | None]
    validation_corpus: NotRequired[str | None]
    as_of: NotRequired[str | None]
    recipe: NotRequired[str | None]
    source_folder: NotRequired[str | None]
    index_shards: NotRequired[str | None]
    query_shards: NotRequired[str | None]
    benchmark_files: NotRequired[list[Source]]


def plan_from_json(text: str | bytes, uri: str) -> Plan:
    """Parse a plan. Raises BadInputError, which names ``uri``, if it is not a complete plan."""
    document = documents.read(text, uri, _Document, "run `retro-ops plan` again")
    base = document.get("base")
    plan = Plan(
        dataset=check_name("dataset", document["dataset"]),
        root=document["root"],
        parameters=parameters.from_written(document["parameters"], uri),
        identity=Identity(**document["identity"]),
        shards=tuple(_shard(s, uri) for s in document["shards"]),
        skipped=tuple(document["skipped"]),
        **{
            key: document.get(key)
            for key in (
                *("corpus", "validation_corpus", "as_of", "supersedes", "code_versions"),
                *("recipe", "source_folder", "index_shards", "query_shards"),
            )
        },
        base=Base(**{**base, "shards": tuple(BaseShard(**s) for s in base["shards"])}) if base else None,
        condemned=tuple(document.get("condemned", ())),
        deduplicated=document.get("deduplicated", False),
        benchmark_files=tuple(Source(**source) for source in document.get("benchmark_files", ())),
    )
    _check_plan(plan, uri)
    return plan


def _check_plan(plan: Plan, uri: str) -> None:
    """Raise BadInputError for names that are no folder names, for a shard that is there twice and for a wrong size."""
    if plan.base:
        # They become parts of locations.
        names = [plan.base.trained, plan.base.index, plan.base.tuning]
        names += [name for shard in plan.base.shards for name in (shard.embeddings, shard.neighbours)]
        for name in filter(None, names):
            check_name("digest", name)
        for previous in plan.base.shards:
            check_name("shard", previous.name)
    if len(plan.by_name) != len(plan.shards):
        raise BadInputError(f"{uri} has a shard twice", "run `retro-ops plan` again")
    sizes = plan.identity
    if sizes.vocabulary_size < 1 or sizes.dimension < 1 or not 0 <= sizes.pad_id < sizes.vocabulary_size:
        raise BadInputError(f"{uri}: identity has impossible sizes: {sizes}", "run `retro-ops plan` again")


def _shard(entry: Mapping[str, Any], uri: str) -> Shard:
    shard = Shard(
        check_name("shard", entry["name"]),
        entry["split"],
        tuple(Source(**source) for source in entry["sources"]),
        indexed=entry.get("indexed", True),
        queried=entry.get("queried", True),
        **{name: Source(**entry[name]) for name in ("without", "contaminated") if entry.get(name)},
    )
    if not (shard.indexed or shard.queried):
        raise BadInputError(
            f"{uri}: shard {shard.name!r} is neither indexed nor queried", "choose at least one, or leave the shard out"
        )
    return shard
