"""Prints the tables of docs/scale.md: bytes and hours by stage, as `plan` estimates them.

python benchmarks/scale.py
"""

from retro_ops.plan import estimate, limits, traffic

SIZES = {"10 M": 10**7, "200 M": 2 * 10**8, "2 B": 2 * 10**9, "20 B": 2 * 10**10}
WORKERS = (1, 8, 64)
SHARDS = 155

LARGEST = 0.02
"""Share of the largest shard; the mean is a third of that."""


def work(chunks: int) -> estimate.Work:
    """A corpus like MassiveOpenText: a hundredth for validation, 275 bytes and a fifth of a document for each chunk."""
    return estimate.Work(
        chunks={"train": chunks * 99 // 100, "val": chunks // 100},
        documents=chunks // 5,
        shards=SHARDS,
        largest_shard=int(chunks * LARGEST),
        chunk_size=64,
        chunk_operations=1.36e9,
        model_bytes=90_000_000,
        token_bytes=2,
        dimension=384,
        num_neighbours=2,
        recall_sample=2000,
        memory_budget=2**31,
        corpus_bytes=chunks * 275,
    )


def index(chunks: int) -> estimate.Index:
    """``IVF131072,PQ32``, as the original used."""
    return estimate.Index(131_072, 40, min(chunks, 131_072 * 256))


def main() -> None:
    most = WORKERS[-1]
    of = {name: work(chunks) for name, chunks in SIZES.items()}
    moved = {name: traffic.traffic(some, index(SIZES[name]), most) for name, some in of.items()}
    largest = list(of)[-1]
    powers = traffic.faster_than_linear(of[largest], index(SIZES[largest]), most)
    print(f"| TB read, {most} workers |" + "".join(f" {name} |" for name in of) + " grows as |")
    print("|---|" + "---|" * (len(of) + 1))
    for stage in moved[largest]:
        read = [f"{moved[name][stage].read / 1e12:,.2f}" if stage in moved[name] else "-" for name in of]
        cells = "".join(f" {amount} |" for amount in read)
        power = f"N^{powers[stage]:.1f}" if stage in powers else "N or less"
        print(f"| {stage} |{cells} {power} |")
    print("\n| chunks |" + "".join(f" workers: {workers} |" for workers in WORKERS) + " |")
    print("|---|" + "---|" * (len(WORKERS) + 1))
    for name, some in of.items():
        seconds = estimate.estimate(some, index(SIZES[name])).seconds["cuda"]
        by_workers = [(n, traffic.traffic(some, index(SIZES[name]), n)) for n in WORKERS]
        took = [traffic.hours(some, seconds, of_run, n) for n, of_run in by_workers]
        cells = "".join(f" {sum(hours.values()):,.1f} h |" for hours in took)
        said = "; ".join(beyond.problem for beyond in limits.exceeded(some, index(SIZES[name]), False))
        slowest = max(took[-1], key=lambda stage: took[-1][stage])
        print(f"| {name} |{cells} {said or f'longest with {most} workers: {slowest}'} |")


if __name__ == "__main__":
    main()
