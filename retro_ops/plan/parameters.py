"""The parameters of a run, each defined once: default, meaning, bounds, and which stages read it.

Flags of ``retro-ops``, fields of the trigger forms, the table of docs/parameters.md and the check of values all follow
from these definitions. Standard library only, because Airflow parses it.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from retro_ops.errors import BadInputError
from retro_ops.sizes import parse_bytes

Kind = Literal["text", "integer", "number", "choice", "memory", "flag"]
Section = Literal["Documents and chunks", "Embedding", "Index and neighbours", "How it runs"]

CHUNKS: Section = "Documents and chunks"
EMBEDDING: Section = "Embedding"
INDEX: Section = "Index and neighbours"
RUN: Section = "How it runs"

TOKENIZE = ("tokenize-and-chunk",)
TUNE_AND_RETRIEVE = ("tune-search", "retrieve-neighbours")
KINDS: dict[str, tuple[type, ...]] = {"integer": (int,), "number": (int, float), "flag": (bool,)}
"""Types of a value by the kind of its parameter; the others are texts."""

SHOWN = 80
"""Characters of a wrong value in an error."""

LONGEST_TEXT = 10_000

TEXT_FIELD = "text"
"""Field that holds the text of a document by default, and always in the parts of a recipe."""

LARGEST = 2**63

WORKING = (
    *("sign-documents", "find-duplicates", "tokenize-and-chunk", "embed-chunks", "train-faiss-index"),
    *("search-samples", "build-faiss-index", "merge-indexes", "tune-search", "search-parts", "retrieve-neighbours"),
    *("validate", "describe"),
)
"""Stages that hold data in memory."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a run."""

    name: str
    default: Any
    kind: Kind
    meaning: str
    """One or two sentences; Markdown, since the form and the docs show it."""
    section: Section
    title: str | None
    """Title on the trigger form; None: a flag only."""
    decides: str | None
    """First stage whose output it changes; None: it is in no digest."""
    read_by: tuple[str, ...]
    """Stages that take it as a flag."""
    unset: str
    """Meaning of no value, if the default is None."""
    choices: tuple[str, ...]
    minimum: float | None
    maximum: float | None
    refresh_only: bool
    """Whether only the form of a refresh has it."""
    kept_on_refresh: bool
    """Whether a refresh that does not set it takes the published version's value."""
    added_later: bool
    """Whether plans and digests have it only where it is not the default, so that earlier ones stay as they are. True
    for every new parameter."""

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def where(self) -> str:
        """Where to set it, for the hints of errors: ``--text-field (Text field on the form)``."""
        return f"{self.flag} ({self.title} on the form)" if self.title else self.flag

    def parse(self, text: str) -> Any:
        """The value that ``text`` stands for. BadInputError when it is not one."""
        if self.kind not in ("integer", "number"):
            return self.check(text)
        try:
            return self.check(int(text) if self.kind == "integer" else float(text))
        except ValueError:
            raise self._refusal(text) from None

    def check(self, value: Any) -> Any:
        """``value``, if it is one that this parameter can have. BadInputError otherwise."""
        if value is None and self.default is None:
            return None
        if type(value) not in KINDS.get(self.kind, (str,)):
            raise self._refusal(value)
        if isinstance(value, str):
            self._check_text(value)
        elif self.kind != "flag":
            finite = -LARGEST < value < LARGEST  # NaN is not.
            too_low = self.minimum is not None and value < self.minimum
            too_high = self.maximum is not None and value > self.maximum
            if not finite or too_low or too_high:
                raise self._refusal(value)
        return value

    def _check_text(self, text: str) -> None:
        if self.kind == "memory":
            try:
                amount = parse_bytes(text)
            except BadInputError as error:
                raise BadInputError(f"{self.name}: {error}") from error
            if amount < 1:
                raise BadInputError(f"{self.name} is {text!r}", "give at least 1 byte, such as 2GiB")
        if self.kind == "choice" and text not in self.choices:
            raise BadInputError(f"{self.name} is {text[:SHOWN]!r}", f"use one of: {', '.join(self.choices)}")
        if self.kind == "text" and not text and self.default is not None:
            raise BadInputError(f"{self.name} is empty", f"leave it out for its default: {self.default}")
        if len(text) > LONGEST_TEXT or "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            raise BadInputError(
                f"{self.name} is {text[:SHOWN]!r}", f"give at most {LONGEST_TEXT:,} characters, without NUL"
            )

    def _refusal(self, value: Any) -> BadInputError:
        noun = {"integer": "a whole number", "number": "a number", "flag": "true or false"}.get(self.kind, "a text")
        shown = value if isinstance(value, str) else json.dumps(value, default=str)
        return BadInputError(
            f"{self.name} is {shown[:SHOWN]!r}" if isinstance(value, str) else f"{self.name} is {shown[:SHOWN]}",
            f"give {noun}{self._bounds()}",
        )

    def _bounds(self) -> str:
        if self.minimum is not None and self.maximum is not None:
            return f" from {self.minimum:g} to {self.maximum:g}"
        return f" of at least {self.minimum:g}" if self.minimum is not None else ""


def _define(
    default: Any,
    kind: Kind,
    meaning: str,
    section: Section,
    *,
    title: str | None = None,
    decides: str | None = None,
    read_by: tuple[str, ...] = (),
    unset: str = "",
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    refresh_only: bool = False,
    kept_on_refresh: bool = True,
    added_later: bool = False,
) -> Any:
    options = {name: value for name, value in locals().items() if name != "default"}
    return dataclasses.field(default=default, metadata=options)


def _text(default: str | None, meaning: str, section: Section, **options: Any) -> Any:
    return _define(default, "text", meaning, section, **options)


def _integer(default: int | None, meaning: str, section: Section, *, minimum: int = 1, **options: Any) -> Any:
    return _define(default, "integer", meaning, section, minimum=minimum, **options)


def _share(default: float | None, meaning: str, section: Section, **options: Any) -> Any:
    return _define(default, "number", meaning, section, minimum=0, maximum=1, **options)


def _choice(default: str, choices: tuple[str, ...], meaning: str, section: Section, **options: Any) -> Any:
    return _define(default, "choice", meaning, section, choices=choices, **options)


def _memory(default: str | None, meaning: str, section: Section, **options: Any) -> Any:
    return _define(default, "memory", meaning, section, **options)


@dataclass(frozen=True)
class Parameters:
    """Everything a run may choose; the order of the fields is that of flags, forms and digests.

    None means that a stage derives the value, and records in its report what it took and why.
    """

    tokenizer: str = _text(
        "t5-base",
        "Tokenizer of the chunks, the one that the trainer uses: hub name or local folder.",
        CHUNKS,
        title="Tokenizer",
        decides="tokenize-and-chunk",
        read_by=(*TOKENIZE, "embed-chunks", "show"),
    )
    pad_id: int | None = _integer(
        None,
        "Token id that pads the last chunk of a document.",
        CHUNKS,
        minimum=0,
        unset="the tokenizer's own",
        decides="tokenize-and-chunk",
        read_by=(*TOKENIZE, "retrieve-neighbours"),
    )
    chunk_size: int = _integer(
        64,
        "Tokens in a chunk.",
        CHUNKS,
        maximum=4096,
        title="Chunk size",
        decides="tokenize-and-chunk",
        read_by=TOKENIZE,
    )
    max_chunks: int | None = _integer(
        None,
        "Stop a shard before the document that would exceed this number of chunks.",
        CHUNKS,
        title="Max chunks per shard",
        unset="no limit",
        decides="tokenize-and-chunk",
        read_by=TOKENIZE,
    )
    token_dtype: str = _choice(
        "auto",
        ("auto", "uint16", "uint32"),
        "Type of the stored token ids; `auto`: uint16 when the vocabulary fits.",
        CHUNKS,
        decides="tokenize-and-chunk",
        read_by=TOKENIZE,
    )
    text_field: str = _text(
        TEXT_FIELD,
        "Key (JSON lines) or column (Parquet) that holds the text of a document. A recipe names it for each source.",
        CHUNKS,
        title="Text field",
        decides="tokenize-and-chunk",
        read_by=TOKENIZE,
        added_later=True,
    )
    on_bad_record: str = _choice(
        "quarantine",
        ("quarantine", "fail"),
        "What to do with a bad record: `quarantine` sets it aside with its line and the reason, `fail` stops.",
        CHUNKS,
        title="Bad records",
        decides="tokenize-and-chunk",
        read_by=("list-sources", *TOKENIZE),
    )
    max_bad_share: float = _share(
        0.5,
        "Share of a shard's records that may be bad. Up to this share, bad records are set aside with a warning and "
        "the rest is used, so at the default half of a file may be lost; above it the shard fails. `0` accepts no bad "
        "record.",
        CHUNKS,
        title="Bad-record limit",
        decides="tokenize-and-chunk",
        read_by=("list-sources", *TOKENIZE),
    )
    model: str = _text(
        "sentence-transformers/all-MiniLM-L6-v2",
        "Sentence-transformers model that embeds the chunks: hub name or local folder.",
        EMBEDDING,
        title="Model",
        decides="embed-chunks",
        read_by=("embed-chunks",),
    )
    embed_input: str = _choice(
        "text",
        ("text", "ids"),
        "`text` decodes each chunk and tokenises it again, as the original did. `ids` feeds the token ids directly, "
        "which is faster; it needs the model's own tokenizer and gives slightly different vectors, so do not mix both "
        "in one dataset.",
        EMBEDDING,
        title="Embedding input",
        decides="embed-chunks",
        read_by=("embed-chunks",),
    )
    embed_prompt: str | None = _text(
        None,
        "Text that the model reads before each chunk, such as `passage: `, or the name of one of the model's prompts.",
        EMBEDDING,
        title="Prompt",
        unset="the model's own prompt for documents, if it has one",
        decides="embed-chunks",
        read_by=("embed-chunks",),
        added_later=True,
    )
    embed_dimensions: int | None = _integer(
        None,
        "Number of dimensions to keep of each vector, the first ones; only for models that were trained for it "
        "(Matryoshka).",
        EMBEDDING,
        title="Dimensions",
        unset="all",
        decides="embed-chunks",
        read_by=("embed-chunks",),
        added_later=True,
    )
    trust_remote_code: bool = _define(
        False,
        "flag",
        "Run Python code that the model contains. Without this flag, such a model is refused. A plan never stores it.",
        EMBEDDING,
        read_by=("embed-chunks",),
        kept_on_refresh=False,
        added_later=True,
    )
    batch_size: int | None = _integer(
        None,
        "Chunks embedded at a time; fewer need less memory.",
        EMBEDDING,
        title="Batch size",
        unset="the fastest on the device: 16 per core, 8,192 per GPU",
        read_by=("embed-chunks",),
        kept_on_refresh=False,
    )
    index_type: str = _text(
        "auto",
        "faiss factory string, or `auto`: flat up to 20,000 vectors, else an inverted file sized by the number of "
        "vectors and their dimension. The report of `train-faiss-index` says which type was chosen and why.",
        INDEX,
        title="Index type",
        decides="train-faiss-index",
        read_by=("train-faiss-index",),
    )
    index_memory: str | None = _memory(
        None,
        "Memory limit of an index of type `auto`, such as `8GiB`: smaller codes are chosen until it fits.",
        INDEX,
        title="Index memory",
        unset="no limit",
        decides="train-faiss-index",
        read_by=("train-faiss-index",),
    )
    index_too_small: str = _choice(
        "fail",
        ("fail", "downgrade"),
        "What to do when the corpus is too small to train the index type: `fail`, or `downgrade` to what `auto` "
        "chooses, with a warning in the report and on the card.",
        INDEX,
        title="Corpus too small",
        decides="train-faiss-index",
        read_by=("train-faiss-index",),
    )
    max_training_vectors: int | None = _integer(
        None,
        "Size of the training sample of the index, in vectors.",
        INDEX,
        title="Max training vectors",
        unset="256 per list; 65,536 for an index without lists",
        decides="train-faiss-index",
        read_by=("train-faiss-index",),
    )
    seed: int = _integer(
        0,
        "Random seed of all samples and of the clustering: the same seed and input give the same dataset.",
        RUN,
        minimum=0,
        title="Random seed",
        decides="train-faiss-index",
        read_by=("check-drift", "train-faiss-index", *TUNE_AND_RETRIEVE, "show"),
    )
    num_neighbours: int = _integer(
        4,
        "Neighbours stored for each chunk.",
        INDEX,
        maximum=1024,
        title="Neighbours",
        decides="tune-search",
        read_by=TUNE_AND_RETRIEVE,
    )
    keep_neighbours: int | None = _integer(
        None,
        "Neighbours kept for each chunk before filters, at least `num_neighbours`. With the same number, a refresh "
        "takes another `num_neighbours`, `max_overlap`, `max_shared_run` or `max_shared_ngrams` from them, without a "
        "search.",
        INDEX,
        maximum=1024,
        title="Kept neighbours",
        unset="none",
        decides="tune-search",
        added_later=True,
    )
    profile: str = _choice(
        "default",
        ("default", "seed"),
        "`default` reaches the target recall; `seed` searches exactly as the original scripts did and ignores the "
        "filters.",
        INDEX,
        title="Search profile",
        decides="tune-search",
        read_by=TUNE_AND_RETRIEVE,
    )
    nprobe: int | None = _integer(
        None,
        "Inverted lists probed for a query.",
        INDEX,
        title="nprobe",
        unset="measured: as many as reach the target recall; 1 with the `seed` profile",
        decides="tune-search",
        read_by=TUNE_AND_RETRIEVE,
    )
    retrieval_margin: int | None = _integer(
        None,
        "Candidates beyond the number of neighbours, since some belong to the query's own document.",
        INDEX,
        minimum=0,
        title="Retrieval margin",
        unset="measured: as many as reach the target recall; 4 with the `seed` profile",
        decides="tune-search",
        read_by=TUNE_AND_RETRIEVE,
    )
    target_recall: float = _share(
        0.95,
        "Share of the true nearest neighbours to find, measured on a sample; 1 searches exactly.",
        INDEX,
        title="Target recall",
        decides="tune-search",
        read_by=TUNE_AND_RETRIEVE,
    )
    recall_sample: int = _integer(
        2000,
        "Number of queries in the sample on which recall is measured.",
        INDEX,
        title="Recall sample",
        decides="tune-search",
        read_by=TUNE_AND_RETRIEVE,
    )
    max_overlap: float | None = _share(
        None,
        "Drop neighbours that share more than this part of their tokens with the chunk (near-duplicates).",
        INDEX,
        title="Max token overlap",
        unset="keep all",
        decides="tune-search",
        read_by=TUNE_AND_RETRIEVE,
    )
    max_shared_run: int | None = _integer(
        None,
        "Drop neighbours of validation chunks that have a longer run of tokens in common with the chunk (leakage).",
        INDEX,
        minimum=0,
        title="Max shared run",
        unset="keep all",
        decides="tune-search",
        read_by=TUNE_AND_RETRIEVE,
    )
    max_shared_ngrams: float | None = _share(
        None,
        "Drop neighbours of validation chunks whose 13-grams have a higher Jaccard similarity.",
        INDEX,
        title="Max shared 13-grams",
        unset="keep all",
        decides="tune-search",
        read_by=TUNE_AND_RETRIEVE,
    )
    min_recall: float = _share(
        0.8,
        "Measured recall below which nothing is published (ignored with the `seed` profile).",
        INDEX,
        title="Min recall",
        read_by=("publish",),
    )
    min_full_rows: float = _share(
        0.0,
        "Share of rows with all neighbours below which nothing is published.",
        INDEX,
        title="Min full rows",
        read_by=("publish",),
    )
    max_duplicates: float = _share(
        1.0,
        "Share of near-duplicate neighbours above which nothing is published.",
        INDEX,
        title="Max near-duplicates",
        read_by=("publish",),
    )
    max_leaked: float = _share(
        1.0,
        "Share of validation chunks that share a run of more than half of their tokens with a neighbour, above which "
        "nothing is published.",
        INDEX,
        title="Max leaked rows",
        read_by=("publish",),
    )
    max_imbalance: float | None = _define(
        None,
        "number",
        "Imbalance factor of the index above which nothing is published.",
        INDEX,
        minimum=1,
        title="Max imbalance",
        unset="no limit",
        read_by=("publish",),
    )
    max_drift: float = _define(
        0.25,
        "number",
        "Share by which the quantisation error of the index, or the imbalance of its lists, may rise before a refresh "
        "retrains the index.",
        INDEX,
        minimum=0,
        title="Max drift",
        refresh_only=True,
        read_by=("check-drift",),
    )
    max_removed_share: float = _share(
        0.5,
        "Share of the published shards above which a refresh stops instead of removing them: an empty mount looks like "
        "a corpus that shrank.",
        CHUNKS,
        title="Max removed shards",
        refresh_only=True,
        kept_on_refresh=False,
        read_by=("plan",),
        added_later=True,
    )
    device: str = _choice(
        "auto",
        ("auto", "cpu", "cuda"),
        "`auto` uses a GPU if there is one, and the log says so; `cuda` fails without one.",
        EMBEDDING,
        title="Device",
        read_by=(
            *("embed-chunks", "search-samples", "train-faiss-index", "build-faiss-index"),
            *(*TUNE_AND_RETRIEVE, "describe", "serve"),
        ),
        kept_on_refresh=False,
    )
    shard_index: bool = _define(
        False,
        "flag",
        "With the `seed` profile: spread the index over all GPUs. (The default profile copies the vectors to each GPU, "
        "or spreads them where they do not fit.)",
        INDEX,
        read_by=("build-faiss-index", *TUNE_AND_RETRIEVE),
        kept_on_refresh=False,
    )
    memory_budget: str = _memory(
        "2GiB",
        "Memory that a stage may use beside its model and index. A line of the corpus may take a 256th of it; this "
        "limit decides which documents are read. If it is left at its default, the training sample may take three "
        "eighths of the memory of the machine or container, and in a container with more than 8 GiB a search or "
        "`find-duplicates` may take a quarter of its memory.",
        RUN,
        title="Memory budget",
        read_by=("list-sources", "split-corpus", *WORKING, "serve"),
    )
    search_memory: str | None = _memory(
        None,
        "Memory that an index may take where it is merged or searched, such as `16GiB`; a larger one is read "
        "part by part, with the same result.",
        RUN,
        title="Search memory",
        unset="three quarters of the memory of the machine or container, minus the memory budget",
        read_by=("merge-indexes", *TUNE_AND_RETRIEVE, "serve"),
        kept_on_refresh=False,
    )
    duplicates: str = _choice(
        "keep",
        ("keep", "report", "drop"),
        "What to do with documents that repeat others, in any shard: `keep` them, `report` how many there are, or "
        "`drop` them. If a training document repeats a validation document, `drop` removes the training document. Only "
        "shards that lose documents are rebuilt.",
        CHUNKS,
        title="Duplicates",
        decides="find-duplicates",
    )
    duplicate_threshold: float = _share(
        0.8,
        "Jaccard similarity of word 5-grams above which two documents are duplicates.",
        CHUNKS,
        title="Duplicate threshold",
        decides="find-duplicates",
    )
    benchmarks: str | None = _text(
        None,
        "Benchmark texts that must not be in the training data: a file, a folder or a pattern of JSON lines or "
        "Parquet, with one text under the key `text` of each record. Training documents that share 13 words in a row "
        "with a text, or the whole of a text of 8 to 12 words, are contaminated.",
        CHUNKS,
        title="Benchmarks",
        unset="none",
        decides="find-duplicates",
        added_later=True,
    )
    contaminated: str = _choice(
        "drop",
        ("drop", "report"),
        "What to do with documents that are contaminated by `benchmarks`: `drop` them, or `report` how many there are.",
        CHUNKS,
        title="Contaminated documents",
        decides="find-duplicates",
        added_later=True,
    )
    longest_line: str = _memory(
        "8MiB",
        "Maximum length of a line of the corpus, such as `64MiB` for whole books; a longer one is a bad record. A "
        "line may take a 256th of the memory budget, so `64MiB` needs a budget of `16GiB`.",
        CHUNKS,
        title="Longest line",
        decides="tokenize-and-chunk",
        read_by=("list-sources", *TOKENIZE),
        added_later=True,
    )

    @property
    def compares_documents(self) -> bool:
        """Whether `sign-documents` and `find-duplicates` run before documents are tokenised."""
        return self.duplicates != "keep" or self.benchmarks is not None

    @property
    def drops_documents(self) -> bool:
        """Whether documents are left out for what `find-duplicates` finds."""
        return self.duplicates == "drop" or (self.benchmarks is not None and self.contaminated == "drop")


PARAMETERS: dict[str, Parameter] = {
    field.name: Parameter(field.name, field.default, **field.metadata) for field in dataclasses.fields(Parameters)
}
"""Every parameter by name, in order."""


def read_by(stage: str) -> tuple[str, ...]:
    """Names of the parameters that ``stage`` takes as flags; `plan` and `build` take all."""
    return tuple(name for name, parameter in PARAMETERS.items() if stage in parameter.read_by)


def values_for(stage: str, chosen: Parameters) -> dict[str, Any]:
    """Values of the parameters that ``stage`` reads, for its report."""
    return {name: getattr(chosen, name) for name in read_by(stage)}


NEVER_PLANNED = ("trust_remote_code",)
"""Whoever can write to the store could give themselves what these allow."""


def set_later(chosen: Parameters, stage: str) -> Iterator[list[Any]]:
    """[name, value] of later parameters that decide ``stage`` and are not at their default."""
    for name, parameter in PARAMETERS.items():
        if parameter.decides == stage and parameter.added_later and not _is_default(chosen, name):
            yield [name, getattr(chosen, name)]


def as_written(chosen: Parameters) -> dict[str, Any]:
    """``chosen`` as a plan holds it: without later parameters at their default, so that plans keep their bytes."""
    return {
        name: getattr(chosen, name)
        for name, parameter in PARAMETERS.items()
        if name not in NEVER_PLANNED and not (parameter.added_later and _is_default(chosen, name))
    }


def from_written(document: Mapping[str, Any], uri: str) -> Parameters:
    """The parameters that the plan at ``uri`` holds as ``document``. BadInputError for a value that is none."""
    values = {name: value for name, value in document.items() if name not in NEVER_PLANNED}
    if unknown := sorted(set(values) - set(PARAMETERS)):
        raise BadInputError(
            f"{uri}: unknown parameter {unknown[0][:SHOWN]!r}", "run `retro-ops plan` again, with this version"
        )
    for name, value in values.items():
        try:
            PARAMETERS[name].check(value)
        except BadInputError as error:
            raise BadInputError(f"{uri}: parameters: {error}") from error
    return Parameters(**values)


def _is_default(chosen: Parameters, name: str) -> bool:
    return bool(getattr(chosen, name) == PARAMETERS[name].default)
