"""Corpus -> plan.json: the shards, their files, and the tokenizer and model of a run.

``--refresh`` starts from the published version: it keeps the values of flags that are not given, and reuses the outputs
of unchanged shards. ``--repair`` plans with the corpus of that version (or of a run), without its damaged outputs.
"""

import json
import logging
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from typing import Any

from retro_ops.corpus import finding
from retro_ops.corpus.recipes.shard_patterns import split_patterns
from retro_ops.embedding.model import Model, chosen_model
from retro_ops.errors import BadInputError
from retro_ops.execution.flags import add_place, add_unset, defaults_of
from retro_ops.execution.plan_files import read_plan, write_plan
from retro_ops.plan import digests, documents, paths, views
from retro_ops.plan.name_lists import split_names
from retro_ops.plan.parameters import PARAMETERS, TEXT_FIELD, Parameters
from retro_ops.plan.plan import Identity, Plan, check_name
from retro_ops.plan.published_changes import check_removed
from retro_ops.planning.base_version import known_duplicates, with_base
from retro_ops.planning.expectation import write_estimate
from retro_ops.planning.repair import plan_repair
from retro_ops.planning.shard_choice import check_patterns, chosen
from retro_ops.planning.shards import checked_day, of_benchmarks, of_patterns, of_recipe
from retro_ops.progress import say
from retro_ops.sizes import counted, in_words, parse_bytes
from retro_ops.storage import probe, store
from retro_ops.tokens import hub_names
from retro_ops.tokens.chunking import token_dtype
from retro_ops.tokens.tokenizer import Tokenizer, store_for_tasks
from retro_ops.versions import condemned, history
from retro_ops.versions.changes import since_published


def add_arguments(parser: ArgumentParser) -> None:
    add_place(parser)
    parser.add_argument("--sources", help="list of source files that `list-sources` wrote, instead of a corpus")
    parser.add_argument("--output", required=True, help="plan to write")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="number of workers for the estimate of hours (default: 1)"
    )
    parser.add_argument("--run", help="with --repair: repair this run instead of the published version")
    add_choices(parser)


def add_choices(parser: ArgumentParser) -> None:
    """Add the flags that `plan` and `build` share."""
    parser.add_argument("--corpus", help="training files: a file, a folder or a pattern; {date} matches a day")
    parser.add_argument("--validation-corpus", help="validation files: a file, a folder or a pattern")
    for choice, meaning in (("indexed", "in the index"), ("queried", "that get neighbours")):
        parser.add_argument(f"--{choice}", metavar="A,B*", help=f"name patterns of the shards {meaning} (default: all)")
    parser.add_argument("--as-of", metavar="YYYY-MM-DD", help="leave out files whose {date} is later")
    add_unset(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--refresh", action="store_true", help="start from the published version, if there is one")
    how.add_argument("--repair", action="store_true", help="rebuild damaged and missing files of the published version")
    parser.add_argument(
        "--shards",
        type=split_names,
        default=[],
        metavar="A,B",
        help="with --repair: rebuild these even if they are intact",
    )
    parser.add_argument("--quick", action="store_true", help="with --repair: compare lengths, not checksums")


def run(arguments: Namespace, parameters: Parameters) -> None:
    check_name("dataset", arguments.dataset)
    if arguments.unset and not arguments.refresh:
        raise BadInputError("--unset needs --refresh", "leave the parameter out: it then has its default")
    probe.check_writes(paths.dataset_folder(arguments.root.rstrip("/"), arguments.dataset))
    series = history.read(arguments.root.rstrip("/"), arguments.dataset)
    if arguments.repair:
        plan, models = plan_repair(arguments, series), None
    else:
        plan, models = _from_corpus(arguments, parameters, series)
    facts = [uri_of(arguments.output) for uri_of in paths.FOUND.values()]
    for uri in (*paths.plans_after(arguments.output), *facts):  # Of an earlier try.
        store.at(uri).delete(uri)
    if plan.deduplicated:
        _keep_facts(arguments, series)
    changed = since_published(plan, series)
    if arguments.refresh:
        check_removed(changed, plan.parameters.max_removed_share)
    store.write(paths.changes_uri(arguments.output), (json.dumps(changed, indent=1) + "\n").encode())
    if models and not plan.base:
        write_estimate(plan, *models, arguments.output, arguments.workers)
    store.at(arguments.output).delete(paths.tokenizer_uri(arguments.output))  # Of an earlier try.
    if models:
        store_for_tasks(models[0], arguments.output)
    write_plan(plan, arguments.output)
    size = sum(source.bytes for shard in plan.shards for source in shard.sources)
    number = counted(len(plan.shards), "shard")
    say(
        f"plan: {number}, {in_words(size)} of {plan.recipe or plan.corpus}: {arguments.output}",
        event="planned",
        shards=len(plan.shards),
        bytes=size,
    )


def _keep_facts(arguments: Namespace, series: history.Series) -> None:
    """Take the figures of `find-duplicates`, which does not run again: those of the repaired run, or of the run that
    made the published version, else those on its card. Figures that cannot be read are missing on the next card."""
    if arguments.repair and arguments.run:
        run: str | None = paths.plan_uri(arguments.root.rstrip("/"), arguments.dataset, arguments.run)
        on_card: dict[str, Any] = {}
    else:
        run, on_card = series.run_uri(), _readable(paths.card_in(series.folder(), "json"))
    for name, uri_of in paths.FOUND.items():
        if facts := (_readable(uri_of(run)) if run else {}) or on_card.get(name):
            text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
            store.write(uri_of(arguments.output), text.encode())


def _readable(uri: str) -> dict[str, Any]:
    """The JSON document at ``uri``; empty if there is none, or if it is damaged, which is logged."""
    try:
        found: dict[str, Any] = documents.read(store.read(uri), uri, dict[str, Any]) if store.exists(uri) else {}
    except BadInputError as error:
        what = str(error).partition("\n")[0]
        say(f"plan: {what}; figures of duplicates are not taken from it", logging.WARNING, event="damaged")
        return {}
    return found


def _from_corpus(
    arguments: Namespace, parameters: Parameters, series: history.Series
) -> tuple[Plan, tuple[Tokenizer, Model]]:

    places = {"corpus": arguments.corpus, "validation_corpus": arguments.validation_corpus}
    choice = {"index_shards": arguments.indexed, "query_shards": arguments.queried}
    given = {name: getattr(arguments, name) for name in PARAMETERS if hasattr(arguments, name)}
    defaults = defaults_of(arguments.unset, given)
    if arguments.refresh and series.current:
        published = read_plan(series.plan_uri())
        # These depend on the machines of a run, not on the dataset.
        of_this_run = {name: getattr(parameters, name) for name, p in PARAMETERS.items() if not p.kept_on_refresh}
        parameters = replace(published.parameters, **{**defaults, **given, **of_this_run})
        places = {name: place or getattr(published, name) for name, place in places.items()}
        choice = {name: patterns or getattr(published, name) for name, patterns in choice.items()}
        if published.recipe and not (arguments.sources or places["corpus"]):
            raise BadInputError(
                f"the published version was made from the recipe {published.recipe}",
                "run `retro-ops list-sources --refresh` and `split-corpus` first, and name their list with --sources",
            )
    as_of = checked_day(arguments.as_of)
    if arguments.sources:
        days: list[str] = []
        shards, places = of_recipe(arguments)
        parameters = replace(parameters, text_field=TEXT_FIELD)  # That of the parts.
    else:
        shards, days = of_patterns(places, as_of)
    if as_of and not days:
        where = places.get("corpus") or places["recipe"]
        say(f"plan: {where} has no {finding.DATE}, so the current files are used for {as_of}")
    # Only patterns of this run must match a shard: the shards of an earlier choice may be gone.
    check_patterns(shards, {"indexed": arguments.indexed, "queried": arguments.queried})
    patterns = {name: None if text is None else split_patterns(text) for name, text in choice.items()}
    shards = chosen(shards, patterns["index_shards"], patterns["query_shards"])
    digests.check_longest_line(parameters)
    views.check(parameters)
    benchmark_files = of_benchmarks(parameters)
    for amount in (parameters.index_memory, parameters.search_memory):
        if amount:
            parse_bytes(amount)
    hub_names.check_folder("model", parameters.model)  # Loading the tokenizer, which comes first, takes seconds.
    # The model is loaded here, too, so that a run with a wrong name or type fails before any work.
    names = f"tokenizer {parameters.tokenizer} and model {parameters.model}"
    say(f"plan: loading {names if parameters.tokenizer != parameters.model else parameters.model}")
    tokenizer, model = Tokenizer.load(parameters.tokenizer, parameters.pad_id), chosen_model(parameters)
    plan = Plan(
        dataset=arguments.dataset,
        root=arguments.root.rstrip("/"),
        parameters=parameters,
        identity=_identity(parameters, tokenizer, model),
        shards=tuple(shards),
        **places,
        **choice,
        as_of=(as_of or max(days)) if days else None,
        condemned=condemned.read_condemned(arguments.root.rstrip("/"), arguments.dataset),
        supersedes=series.current,
        code_versions=dict(digests.CODE_VERSIONS),
        benchmark_files=benchmark_files,
    )
    if arguments.refresh:
        plan = with_base(known_duplicates(plan, series), series)
    return plan, (tokenizer, model)


def _identity(parameters: Parameters, tokenizer: Tokenizer, model: Model) -> Identity:
    from retro_ops.index import index_types

    token_dtype(tokenizer.vocabulary_size, parameters.token_dtype)
    _check_length(parameters, model)
    if parameters.index_type != index_types.AUTO:  # Chosen once the vectors are counted, and always fit.
        index = index_types.make_index(parameters.index_type, model.dimension)
        index_types.check_mergeable(index, parameters.index_type)
    return Identity(
        tokenizer_digest=tokenizer.digest,
        vocabulary_size=tokenizer.vocabulary_size,
        pad_id=tokenizer.pad_id,
        model_digest=model.digest,
        dimension=model.dimension,
    )


def _check_length(parameters: Parameters, model: Model) -> None:
    """Log a warning if chunks are longer than what the model reads. BadInputError if it would read less than half."""
    size, longest = parameters.chunk_size, model.longest
    if size <= longest:
        return
    found = f"chunks have {size:,} tokens, but model {parameters.model!r} reads {longest:,} of a text"
    if size > 2 * longest:
        raise BadInputError(
            f"{found}: most of each would not be in its vector", "choose a smaller --chunk-size or another --model"
        )
    say(f"plan: {found}; the rest of a chunk is not in its vector", logging.WARNING, event="cut_chunks")
