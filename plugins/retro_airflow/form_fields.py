"""The fields of the trigger forms, and what makes them."""

from typing import Any, get_args

from airflow.sdk import Param

from retro_airflow.deployment import RuntimeName
from retro_airflow.settings import Settings
from retro_ops.plan.parameters import Parameters

MEMORY_PATTERN = r"^\d+(\.\d+)? ?([kKMGT]i?B?|B)?$"

DEFAULT = Parameters()

_CHUNKS = "Documents and chunks"
_EMBEDDING = "Embedding"
INDEX = "Index and neighbours"
_RUN = "How it runs"


def recipe_fields() -> dict[str, Param]:
    return {
        "recipe": optional_text(
            None,
            "Recipe",
            "Instead of a corpus: a file (YAML, `s3://` or a full path) that says which documents there are, what each "
            "is, and which shards they become; or the name of one that comes with the package.",
        ),
        "source_folder": optional_text(
            None, "Source folder", "Where the relative paths of the recipe start. Empty: in the recipe's own folder."
        ),
    }


def chunk_fields(settings: Settings) -> dict[str, Param]:
    return {
        "tokenizer": text(
            settings.tokenizer, "Tokenizer", "Hub name or local folder of the tokenizer that the trainer uses.", _CHUNKS
        ),
        "chunk_size": _integer(DEFAULT.chunk_size, "Chunk size", "Tokens in a chunk.", _CHUNKS, maximum=4096),
        "max_chunks": _optional_integer("Most chunks", "Stop each shard after so many chunks. Empty: all.", _CHUNKS),
        "on_bad_record": choice(
            DEFAULT.on_bad_record,
            ["quarantine", "fail"],
            "Bad records",
            "`quarantine` sets a record that cannot be read aside, with its line and the reason; `fail` stops.",
            _CHUNKS,
        ),
        "max_bad_share": _share(
            "max_bad_share",
            "Most bad records",
            "A shard fails when a larger share of its records than this is bad (0 to 1).",
            _CHUNKS,
        ),
        "duplicates": choice(
            DEFAULT.duplicates,
            ["keep", "report", "drop"],
            "Duplicates",
            "Documents that repeat others, in any shard: `report` counts them (the card shows how many), `drop` leaves "
            "them out; a training document that repeats a validation document goes, whichever comes first.",
            _CHUNKS,
        ),
        "duplicate_threshold": _share(
            "duplicate_threshold",
            "Duplicates from",
            "Jaccard similarity of their word 5-grams from which on two documents are duplicates (0 to 1).",
            _CHUNKS,
        ),
    }


def embedding_fields(settings: Settings) -> dict[str, Param]:
    return {
        "model": text(settings.model, "Model", "Sentence-transformers model: hub name or local folder.", _EMBEDDING),
        "embed_input": choice(
            DEFAULT.embed_input,
            ["text", "ids"],
            "Input",
            "`text` decodes each chunk and tokenises it again, as the original did; `ids` feeds it as it is, which is "
            "faster, if the tokenizer is the model's own.",
            _EMBEDDING,
        ),
        "batch_size": _optional_integer(
            "Batch size", "Chunks embedded at once. Less needs less memory. Empty: what is fastest.", _EMBEDDING
        ),
        "device": choice(
            DEFAULT.device,
            ["auto", "cpu", "cuda"],
            "Device",
            "`auto` takes a GPU if there is one and says so in the log; `cuda` fails without one.",
            _EMBEDDING,
        ),
    }


def index_fields() -> dict[str, Param]:
    return {
        "index_type": optional_text(
            None,
            "Index type",
            "A faiss factory string, or `auto`: by the number of vectors. Empty: the preset's.",
            INDEX,
        ),
        "index_memory": Param(
            None,
            type=["null", "string"],
            pattern=MEMORY_PATTERN,
            title="Index memory",
            description_md="Most memory that an index of type `auto` may take, such as `8GiB`. Empty: any.",
            section=INDEX,
        ),
        "index_too_small": choice(
            DEFAULT.index_too_small,
            ["fail", "downgrade"],
            "Corpus too small",
            "What happens when the corpus is too small to train the index type: `fail`, or `downgrade` to what `auto` "
            "chooses, which the report says.",
            INDEX,
        ),
        "num_neighbours": _integer(
            DEFAULT.num_neighbours, "Neighbours", "Neighbours stored for each chunk.", INDEX, maximum=1024
        ),
        "profile": choice(
            DEFAULT.profile,
            ["default", "seed"],
            "Search profile",
            "`seed` searches exactly as the original scripts did; `default` reaches the target recall.",
            INDEX,
        ),
        "nprobe": _optional_integer("Lists probed", "Index lists searched for a query. Empty: chosen.", INDEX),
        "retrieval_margin": _optional_integer(
            "Retrieval margin",
            "Candidates searched beyond the neighbours, as some come from the chunk's own document. Empty: chosen.",
            INDEX,
            minimum=0,
        ),
        "target_recall": _share(
            "target_recall",
            "Target recall",
            "Share of the true nearest neighbours to find, measured on a sample. 1 searches exactly.",
        ),
        "recall_sample": _integer(
            DEFAULT.recall_sample, "Recall sample", "Queries that the recall is measured on.", INDEX
        ),
        "max_overlap": _optional_share(
            "Most overlap",
            "Drop neighbours that share more of their tokens with the chunk (near-duplicates). Empty: keep them.",
        ),
        "max_shared_run": _optional_integer(
            "Longest shared run",
            "Drop neighbours of validation chunks that have a longer run of tokens in common (leakage). "
            "Empty: keep them.",
            INDEX,
            minimum=0,
        ),
        "max_shared_ngrams": _optional_share(
            "Most shared 13-grams",
            "Drop neighbours of validation chunks whose 13-grams are more alike (Jaccard). Empty: keep them.",
        ),
        "min_recall": _share(
            "min_recall", "Least recall", "Below it nothing is published (not asked of the seed profile)."
        ),
        "max_duplicates": _share(
            "max_duplicates",
            "Most near-duplicates",
            "Share of near-duplicate neighbours; above it nothing is published.",
        ),
        "max_leaked": _share(
            "max_leaked",
            "Most leaked rows",
            "Share of validation chunks with half their tokens in a neighbour; above it nothing is published.",
        ),
        "max_imbalance": Param(
            None,
            type=["null", "number"],
            minimum=1,
            title="Most imbalance",
            description_md="Imbalance factor of the index; above it nothing is published. Empty: any.",
            section=INDEX,
        ),
        "min_full_rows": _share(
            "min_full_rows", "Least full rows", "Share of rows with all neighbours; below it nothing is published."
        ),
        "indexed": optional_text(
            None,
            "Indexed shards",
            "Patterns of the names of the shards whose chunks others find, such as `0?_*,1?_*`. Empty: all.",
            INDEX,
        ),
        "queried": optional_text(
            None,
            "Queried shards",
            "Patterns of the names of the shards whose chunks get neighbours, such as `0[0-8]_*,val_*`. Empty: all.",
            INDEX,
        ),
        "max_training_vectors": _optional_integer(
            "Most training vectors",
            "Vectors that the index is trained on. Empty: all, or what the stage chooses.",
            INDEX,
        ),
    }


def run_fields() -> dict[str, Param]:
    return {
        "memory_budget": Param(
            DEFAULT.memory_budget,
            type="string",
            pattern=MEMORY_PATTERN,
            title="Memory budget",
            description_md="Memory that a stage may use beside its model and index, such as `2GiB`.",
            section=_RUN,
        ),
        "search_memory": Param(
            None,
            type=["null", "string"],
            pattern=MEMORY_PATTERN,
            title="Search memory",
            description_md="Most memory that an index may take where it is merged or searched, such as `16GiB`; a "
            "larger one is read part by part, with the same result. Empty: three quarters of the machine's, less the "
            "memory budget.",
            section=_RUN,
        ),
        "seed": _integer(DEFAULT.seed, "Random seed", "Same seed and input, same dataset.", _RUN, minimum=0),
        "runtime": Param(
            None,
            type=["null", "string"],
            enum=[None, *get_args(RuntimeName)],
            title="Runtime",
            description_md="Where the stages of this run are run. Empty: as the deployment says (`runtime.toml`).",
            section=_RUN,
        ),
        "resources": Param(
            None,
            type=["null", "object"],
            title="Resources",
            description_md="Changes to the deployment's resources, by stage or for `default`, such as "
            '`{"embed-chunks": {"gpus": 1, "memory": "16GiB"}}`.',
            section=_RUN,
        ),
        "allow_partial": Param(
            False,
            type="boolean",
            title="Go on without failed shards",
            description_md="Off: a failed shard stops the run at the `gate`, which says how to mend it.",
            section=_RUN,
        ),
    }


def text(default: str | None, title: str, help_text: str, section: str | None = None, **schema: Any) -> Param:
    """A text that must not be empty; without a default the form asks for one before it can be sent."""
    value: dict[str, Any] = {} if default is None else {"default": default}
    return Param(
        **value, type="string", minLength=1, title=title, description_md=help_text, **_section(section), **schema
    )


def optional_text(default: str | None, title: str, help_text: str, section: str | None = None) -> Param:
    # Not "" for nothing: an empty string greys out the Trigger button.
    return Param(default, type=["null", "string"], title=title, description_md=help_text, **_section(section))


def left_open(of: Param) -> Param:
    """The same field without a value, which may stay so."""
    schema = {key: value for key, value in of.schema.items() if key != "default"}
    kind = schema["type"] if isinstance(schema["type"], list) else ["null", schema["type"]]
    choices = {"enum": [None, *(value for value in schema["enum"] if value is not None)]} if "enum" in schema else {}
    return Param(None, **{**schema, **choices, "type": kind})


def as_published(of: Param) -> Param:
    """The same field on the form of a refresh."""
    said = of.schema["description_md"].replace("Empty: in the recipe's own folder.", "").rstrip()
    return Param(None, **{**of.schema, "description_md": f"{said} Empty: as in the published version."})


def choice(default: str, of: list[str], title: str, help_text: str, section: str | None = None) -> Param:
    return Param(default, type="string", enum=of, title=title, description_md=help_text, **_section(section))


def _integer(
    default: int, title: str, help_text: str, section: str, minimum: int = 1, maximum: int | None = None
) -> Param:
    bounds: dict[str, Any] = {"minimum": minimum} if maximum is None else {"minimum": minimum, "maximum": maximum}
    return Param(default, type="integer", title=title, description_md=help_text, section=section, **bounds)


def _share(name: str, title: str, help_text: str, section: str = INDEX) -> Param:
    bounds: dict[str, Any] = {"minimum": 0, "maximum": 1}
    default = getattr(DEFAULT, name)
    return Param(default, type="number", title=title, description_md=help_text, section=section, **bounds)


def _optional_share(title: str, help_text: str, section: str = INDEX) -> Param:
    return Param(
        None, type=["null", "number"], minimum=0, maximum=1, title=title, description_md=help_text, section=section
    )


def _optional_integer(title: str, help_text: str, section: str, minimum: int = 1) -> Param:
    return Param(
        None, type=["null", "integer"], minimum=minimum, title=title, description_md=help_text, section=section
    )


def _section(section: str | None) -> dict[str, Any]:
    return {} if section is None else {"section": section}
