"""A part of the vectors + the samples of `tune-search` and `describe` -> their true neighbours in that part.

For large indexes, whose vectors each of the two stages would read twice. Needs embeddings only, no index. Any worker
can search any part; a part that failed is searched again alone.
"""

import itertools
from argparse import ArgumentParser, Namespace
from functools import partial

from retro_ops import uris
from retro_ops.compute import device
from retro_ops.errors import require_flags
from retro_ops.execution import report, shard_groups
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import digests, grid, paths, sample_parts, views
from retro_ops.plan.name_lists import split_names
from retro_ops.plan.parameters import Parameters, values_for
from retro_ops.plan.plan import Plan
from retro_ops.plan.sample_parts import SamplePart
from retro_ops.progress import say
from retro_ops.storage.base import Written

STAGE = "search-samples"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--part", type=split_names, metavar="A,B", help="part of the vectors, or several to search in turn"
    )
    parser.add_argument("--list", action="store_true", help="print the names of all parts, one per line")


def run(arguments: Namespace, parameters: Parameters) -> None:
    require_flags(arguments, "plan", remedy="the samples belong to a plan")
    plan = read_plan(arguments.plan)
    if arguments.list:
        from retro_ops.search.samples import largest_index

        for part in sample_parts.parts(largest_index(plan).total):
            print(part.name)
        return

    def work(name: str) -> None:
        part = sample_parts.parse_part(name)
        folder = paths.sample_folder(plan, arguments.plan, part)
        uri, digest = uris.join(folder, paths.REPORT), digests.samples_digest(plan)
        inputs = [paths.embeddings_uri(plan, shard.name) for shard in plan.shards if shard.indexed]
        chosen = values_for("tune-search", parameters)
        report.run_once(STAGE, uri, digest, chosen, inputs, partial(_work, plan, part, folder, parameters))

    shard_groups.one_by_one(STAGE, "part", arguments.part, work)


def _work(plan: Plan, part: SamplePart, folder: str, parameters: Parameters) -> report.Outcome:
    from retro_ops.search import samples
    from retro_ops.search.hits import Truth
    from retro_ops.search.open_index import planned_index
    from retro_ops.search.queries import join

    # `tune-search` measures the search, `describe` the neighbours that are taken from what it finds.
    looked_for = {"tuning": views.searched(parameters), "card": parameters}
    where = device.choose(parameters.device, "torch")
    first, end = grid.bounds(samples.largest_index(plan).total, part.parts, part.part)
    counts = {"vectors": end - first, "queries": 0}
    outputs: list[Written] = []
    for split, of in itertools.product(plan.splits(), dict.fromkeys(looked_for.values())):
        searched = planned_index(plan, split, where, of)
        found = samples.samples(plan, split, searched.chunks)
        drawn = {purpose: queries for purpose, queries in found.items() if looked_for[purpose] == of}
        low, high = (min(bound, searched.chunks.total) for bound in (first, end))
        counts["queries"] += sum(map(len, drawn.values()))
        say(f"{STAGE}: {split}: samples of {', '.join(drawn) or 'nothing'} in {high - low:,} chunks ({where.chosen})")
        if not drawn:
            continue
        # Together, so that the vectors are read once.
        together = join(list(drawn.values()))
        truth = Truth(*searched.hits_between(low, high, together, of.num_neighbours))
        start = 0
        for purpose, queries in drawn.items():
            of_sample = truth.take(start, start + len(queries))
            outputs += samples.write_truth(folder, split, purpose, of_sample)
            start += len(queries)
    return report.Outcome(counts=counts, outputs=outputs, device=where)
