"""The trigger forms of the DAGs."""

from airflow.sdk import Param

from retro_airflow import form_fields
from retro_airflow.settings import Settings
from retro_ops.errors import ConfigurationError
from retro_ops.plan.parameters import PARAMETERS
from retro_ops.plan.plan import NAME_PATTERN

PRESETS: dict[str, dict[str, str]] = {
    "tiny": {"index_type": "IVF64,Flat"},
    "standard": {"index_type": "auto"},
    "original": {"index_type": "IVF131072,PQ32"},
}
"""Values of fields that are left empty, by preset; other fields have the default of their parameter."""

PRESET_HELP = (
    "**standard**: any size, on CPUs or GPUs; the index type follows from the number of chunks. "
    "**tiny**: a trial with 2,500 to some 100,000 chunks, minutes on a laptop (`IVF64,Flat`). "
    "**original**: the index of the original scripts (`IVF131072,PQ32`), from 5 million chunks on; train it on a GPU."
)

CHOICE = ("indexed", "queried")
HOW_IT_RUNS = ("runtime", "resources", "allow_partial", "approve")


def _dataset(default: str | None) -> Param:
    help_text = "Name of the dataset: letters, digits, dots, dashes and underscores."
    return form_fields.text(default, "Dataset", help_text, pattern=f"^{NAME_PATTERN}$")


def form(settings: Settings) -> dict[str, Param]:
    """Fields of the trigger form. Those without a section are always open, at the top."""
    return {
        "dataset": _dataset(settings.dataset),
        "root": form_fields.text(settings.root, "Root", "Location of all datasets: a folder or `s3://bucket/prefix`."),
        "corpus": form_fields.optional_text(
            settings.corpus,
            "Corpus",
            "Documents to train on: a file (`.jsonl`, `.jsonl.gz`, `.jsonl.zst` or `.parquet`), a folder of such files "
            "or a pattern. Each file becomes a shard. Ignored if there is a recipe.",
        ),
        "validation_corpus": form_fields.optional_text(
            settings.validation_corpus,
            "Validation corpus",
            "Documents to validate on. Their neighbours may be training and validation documents; neighbours of "
            "training documents are never validation documents.",
        ),
        "preset": form_fields.choice("standard", list(PRESETS), "Preset", PRESET_HELP),
        "plan_only": form_fields.plan_only(),
        **form_fields.recipe_fields(),
        **form_fields.dataset_fields(settings),
        **form_fields.run_fields(settings),
    }


def massive_open_text_form(settings: Settings) -> dict[str, Param]:
    """Fields of the form of `massive_open_text`: those of a dataset, with the recipe filled in."""
    whole = form(settings)
    return {
        # Not the dataset of the deployment, which is another one.
        "dataset": _dataset("MassiveOpenText"),
        "root": whole["root"],
        "source_folder": form_fields.text(
            None, "Source folder", "Folder that holds `Pile/` and `RealNews/`: a full path or `s3://bucket/prefix`."
        ),
        "recipe": form_fields.text(
            "massive_open_text",
            "Recipe",
            "`massive_open_text` is a recipe of this package. For an edited copy, such as one with other queried "
            "shards, enter its full path.",
        ),
        "preset": form_fields.choice("original", list(PRESETS), "Preset", PRESET_HELP),
        "plan_only": whole["plan_only"],
        **{name: whole[name] for name in (*PARAMETERS, *CHOICE, *HOW_IT_RUNS) if name in whole},
    }


def refresh_form(settings: Settings) -> dict[str, Param]:
    """Fields of the form of a refresh. Most that are left empty keep the value of the published version."""
    set_by = {"RETRO_REFRESH_SCHEDULE": settings.refresh_schedule, "RETRO_REFRESH_WATCH": settings.refresh_watch}
    if any(set_by.values()) and not (settings.root and settings.dataset):
        raise ConfigurationError(
            f"{next(name for name, value in set_by.items() if value)} is set, but a run that it starts has no form "
            "for the dataset",
            "set RETRO_ROOT and RETRO_DATASET as well",
        )
    whole = form(settings)
    return {
        "dataset": whole["dataset"],
        "root": whole["root"],
        # Not the corpus of the deployment: another dataset would be filled with it.
        "corpus": form_fields.optional_text(
            None,
            "Corpus",
            "A file, a folder or a pattern, as for a new dataset. `{date}` matches a day, as in "
            "`s3://bucket/corpus/{date}/*.jsonl.zst`, and a run for a day leaves out files of later days. "
            f"Empty: {form_fields.AS_PUBLISHED}.",
        ),
        "validation_corpus": form_fields.optional_text(
            None,
            "Validation corpus",
            f"A file, a folder or a pattern, with `{{date}}` if needed. Empty: {form_fields.AS_PUBLISHED}.",
        ),
        "as_of": form_fields.optional_text(
            None,
            "As of",
            "Leave out files of days after this one, written as 2026-03-31. Empty: the day of a scheduled run or a "
            "backfill, if any.",
            pattern=r"^\d{4}-\d{2}-\d{2}$",
        ),
        "plan_only": whole["plan_only"],
        **{name: form_fields.as_published(param) for name, param in form_fields.recipe_fields().items()},
        **form_fields.refresh_fields(),
        "unset": form_fields.unset(),
        **{name: whole[name] for name in HOW_IT_RUNS},
    }


def repair_form(settings: Settings) -> dict[str, Param]:
    """Fields of the form of a repair."""
    whole = form(settings)
    return {
        "dataset": whole["dataset"],
        "root": whole["root"],
        "shards": form_fields.field(
            None,
            "Shards",
            "Shards to rebuild even if their files are intact, one per line. Empty: all shards that failed or whose "
            "files are missing or damaged.",
            type=["null", "array"],
            items={"type": "string", "pattern": f"^{NAME_PATTERN}$"},
        ),
        "run": form_fields.optional_text(
            None,
            "Run",
            "Run id of a failed run, such as `scheduled__2026-01-01T03:00:00+00:00`. Empty: the published version.",
        ),
        "quick": form_fields.field(
            False,
            "Compare lengths only",
            "Check only the lengths of files. Off: read every file and compare its checksum.",
            type="boolean",
        ),
        "plan_only": whole["plan_only"],
        **{name: whole[name] for name in HOW_IT_RUNS},
    }


def rollback_form(settings: Settings) -> dict[str, Param]:
    whole = form(settings)
    version = "Number of the version to make current; it may also be a later one."
    return {
        "dataset": whole["dataset"],
        "root": whole["root"],
        "version": Param(type="integer", minimum=1, title="Version", description_md=version),
        **{name: whole[name] for name in ("runtime", "resources")},
    }


def prune_form(settings: Settings) -> dict[str, Param]:
    whole = form(settings)
    return {
        "dataset": whole["dataset"],
        "root": whole["root"],
        "keep": form_fields.field(
            7,
            "Versions to keep",
            "Number of newest versions to keep, besides the current one.",
            type="integer",
            minimum=1,
        ),
        "remove": form_fields.field(
            False, "Remove", "Remove the listed files. Off: only list them in the log.", type="boolean"
        ),
        **{name: whole[name] for name in ("runtime", "resources")},
    }
