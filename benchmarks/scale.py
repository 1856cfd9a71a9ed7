"""Prints the tables of docs/scale.md: bytes and hours by stage, as `plan` estimates them.

python benchmarks/scale.py
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))

import works

from retro_ops.plan import estimate, limits, traffic

SIZES = {"10 M": 10**7, "200 M": 2 * 10**8, "2 B": 2 * 10**9, "20 B": 2 * 10**10}
WORKERS = (1, 8, 64)


def index(chunks: int) -> estimate.Index:
    """``IVF131072,PQ32``, as the original used."""
    return replace(works.ORIGINAL_INDEX, training_vectors=min(chunks, works.ORIGINAL_INDEX.training_vectors))


def main() -> None:
    most = WORKERS[-1]
    of = {name: works.massive_open_text(chunks) for name, chunks in SIZES.items()}
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
