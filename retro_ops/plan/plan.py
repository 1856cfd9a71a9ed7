"""The plan of a run: which shards, from which files, with which parameters; as JSON and back."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar, get_args

from retro_ops.errors import BadInputError
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.specs import load_json

Split = Literal["train", "val"]

SPLITS: tuple[Split, ...] = get_args(Split)

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]*"
"""Dataset and shard names become folder names, so they hold no separator and cannot climb."""

PLAN_FORMAT = 2

READABLE_PLAN_FORMATS = (1, PLAN_FORMAT)
"""Format 1 lacks what came with refreshing: everything in it has a default."""

S = TypeVar("S", "Shard", "BaseShard")


@dataclass(frozen=True)
class Source:
    """One corpus file: ``fingerprint`` identifies its content, not its name or time."""

    uri: str
    bytes: int
    fingerprint: str


@dataclass(frozen=True)
class Shard:
    """``indexed``: its chunks are in the index, so others find them. ``queried``: its chunks have neighbours.
    ``without``: numbers of the records that are left out, as `find-duplicates` wrote them; None: all are in."""

    name: str
    split: Split
    sources: tuple[Source, ...]
    indexed: bool = True
    queried: bool = True
    without: Source | None = None


@dataclass(frozen=True)
class Identity:
    """What a name stood for when the run was planned, so that artefacts cannot mix silently."""

    tokenizer_digest: str
    vocabulary_size: int
    pad_id: int
    model_digest: str
    dimension: int


@dataclass(frozen=True)
class BaseShard:
    """A shard as the base version has it; digests name its folders. ``neighbours``: None if they are of no use, or if
    it was not queried."""

    name: str
    split: Split
    chunks: int
    embeddings: str
    neighbours: str | None
    indexed: bool = True


@dataclass(frozen=True)
class Base:
    """The published version that a refresh starts from: what of it may be used again, by digest.

    ``version``: its folder, relative to that of the dataset. ``trained``: its trained index. ``index``: its filled
    ones, None if they are of no use. ``tuning``: how wide it was searched, None: to be measured again.
    """

    version: str
    trained: str
    index: str | None
    tuning: str | None
    shards: tuple[BaseShard, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, BaseShard]:
        return {shard.name: shard for shard in self.shards}

    def indexed(self, split: Split) -> tuple[BaseShard, ...]:
        """As ``Plan.indexed``."""
        return _indexed(self.shards, split)


@dataclass(frozen=True)
class Plan:
    """A run: which shards, from which files, with which parameters. Every later path follows from it.

    ``corpus``, ``validation_corpus``: where the shards were found; or ``recipe``, and ``source_folder``, where its
    relative paths start (None: in the recipe's own folder). ``as_of``: day (``YYYY-MM-DD``) up to which files
    with a date count. ``base``: None: nothing of another version is used. ``condemned``: digests of outputs that were
    found damaged, so that they are made again elsewhere. ``supersedes``: number of the version that was current when
    this was planned (0: none; None: nobody looked). ``code_versions``: of the stages, when this was planned; what it
    names stays where it is when the code moves on. None: those of now. ``index_shards``, ``query_shards``: patterns of
    names that decided which shards are indexed and queried, for whoever plans the next version; None: all.
    ``deduplicated``: whether `find-duplicates` has said what each shard is without.
    """

    dataset: str
    root: str
    parameters: Parameters
    identity: Identity
    shards: tuple[Shard, ...]
    skipped: tuple[str, ...] = ()
    corpus: str | None = None
    validation_corpus: str | None = None
    as_of: str | None = None
    base: Base | None = None
    condemned: tuple[str, ...] = ()
    supersedes: int | None = None
    code_versions: Mapping[str, int] | None = None
    recipe: str | None = None
    source_folder: str | None = None
    index_shards: str | None = None
    query_shards: str | None = None
    deduplicated: bool = False

    @functools.cached_property
    def memo(self) -> dict[tuple[str, ...], str]:
        """What follows from a plan is worked out once: its digests, which each depend on those of many shards."""
        return {}

    @functools.cached_property
    def is_condemned(self) -> frozenset[str]:
        return frozenset(self.condemned)

    @functools.cached_property
    def by_name(self) -> dict[str, Shard]:
        return {shard.name: shard for shard in self.shards}

    def shard(self, name: str) -> Shard:
        if name in self.by_name:
            return self.by_name[name]
        raise BadInputError(
            f"the plan of dataset {self.dataset!r} has no shard {name!r}",
            f"it has {', '.join(s.name for s in self.shards[:10])}" + (", …" if len(self.shards) > 10 else ""),
        )

    def indexed(self, split: Split) -> tuple[Shard, ...]:
        """Shards of the index that ``split`` queries search, in id order.

        The validation index extends the training index, so training ids stay valid in it.
        """
        return _indexed(self.shards, split)

    def queried(self, split: Split) -> tuple[Shard, ...]:
        return tuple(s for s in self.shards if s.split == split and s.queried)

    def splits(self) -> tuple[Split, ...]:
        """Those that have a dataset spec: some of their shards are queried."""
        return tuple(split for split in SPLITS if self.queried(split))


def _indexed(shards: Sequence[S], split: Split) -> tuple[S, ...]:
    train = tuple(s for s in shards if s.split == "train" and s.indexed)
    return train if split == "train" else train + tuple(s for s in shards if s.split == "val" and s.indexed)


def check_choice(shards: Sequence[Shard]) -> None:
    """BadInputError unless some training shard is indexed, and each validation index has somebody to search it."""
    if not any(shard.indexed for shard in shards if shard.split == "train"):
        raise BadInputError("no training shard is indexed", "name some: validation alone is no index")
    if not any(shard.queried for shard in shards):
        raise BadInputError("no shard is queried, so nobody would have neighbours", "name some")
    validation = [shard for shard in shards if shard.split == "val"]
    if validation and not any(shard.queried for shard in validation):
        raise BadInputError(
            "no validation shard is queried, so nobody would search the validation index",
            "query some of them as well (such as val_*), or leave the validation corpus out",
        )


def check_name(kind: str, name: str) -> str:
    """Return ``name`` when it is safe as a folder name, else raise BadInputError."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise BadInputError(
            f"{kind} name {name!r} cannot be used as a folder name",
            "use letters, digits, '.', '_' and '-', and begin with a letter or digit",
        )
    return name


def category(shard: str) -> str:
    """What kind of text a shard holds, by its name without numbers: ``00_wikipedia_en`` -> ``wikipedia_en``."""
    words = [word for word in re.split(r"[_-]", shard) if word and not word.isdigit()]
    return "_".join(words) or shard


ADDED_LATER: dict[str, Any] = {
    "indexed": True,
    "queried": True,
    "deduplicated": False,
    **dict.fromkeys(("without", "recipe", "source_folder", "index_shards", "query_shards")),
}
"""Fields, and the value with which they are not written: a plan without them has the bytes it always had."""


def as_written(of: "Shard | BaseShard | Plan | dict[str, Any]") -> dict[str, Any]:
    """``of`` as JSON holds it."""
    found = of if isinstance(of, dict) else asdict(of)
    return {key: value for key, value in found.items() if key not in ADDED_LATER or value != ADDED_LATER[key]}


def plan_to_json(plan: Plan) -> str:
    document = as_written(plan)
    document["shards"] = [as_written(shard) for shard in document["shards"]]
    if plan.base:
        document["base"]["shards"] = [as_written(shard) for shard in document["base"]["shards"]]
    return json.dumps({"format": PLAN_FORMAT, **document}, indent=1) + "\n"


def plan_from_json(text: str | bytes, uri: str) -> Plan:
    document = load_json(text, uri)
    if not isinstance(document, dict) or document.get("format") not in READABLE_PLAN_FORMATS:
        raise BadInputError(f"{uri} is not a plan of format {PLAN_FORMAT}", "run `retro-ops plan` again")
    base = document.get("base")
    try:
        plan = Plan(
            dataset=check_name("dataset", document["dataset"]),
            root=document["root"],
            parameters=Parameters(**document["parameters"]),
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
        )
        for former in plan.base.shards if plan.base else ():
            check_name("shard", former.name)
            check_name("digest", former.neighbours or former.embeddings)
    except (KeyError, TypeError) as error:
        raise BadInputError(f"{uri} is not a complete plan: {error}", "run `retro-ops plan` again") from error
    return plan


def _shard(entry: Mapping[str, Any], uri: str) -> Shard:
    shard = Shard(
        check_name("shard", entry["name"]),
        entry["split"],
        tuple(Source(**source) for source in entry["sources"]),
        indexed=entry.get("indexed", True),
        queried=entry.get("queried", True),
        without=Source(**entry["without"]) if entry.get("without") else None,
    )
    if not (shard.indexed or shard.queried):
        raise BadInputError(
            f"{uri}: shard {shard.name!r} is neither indexed nor queried", "choose one, or leave it out"
        )
    return shard
