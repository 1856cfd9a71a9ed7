"""Makes embeddings for the index benchmarks, from real text in some folders or drawn at random.

Real text: windows of 64 word pieces of every text file, ``--stride`` apart. A file is a document; files with equal
content are used once. Windows overlap if the stride is shorter, because few machines hold enough text for millions of
chunks; overlapping windows belong to one document, so they are not neighbours of each other. The model embeds them in
half precision. ``--between`` interpolates further vectors, to get more than can be embedded in acceptable time.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

DIMENSION = 384
WINDOW = 64
LONGEST_TEXT = 100_000
ENDINGS = {".py", ".pyi", ".h", ".hpp", ".cuh", ".c", ".cpp", ".cu", ".txt", ".md", ".rst", ".html", ".js", ".tex", ""}
BATCH = 4096
NAMES = ("chunks", "seq2chunk", "chunk2seq", "embeddings")


def texts(roots: list[str], limit_bytes: int) -> Iterator[str]:
    seen, total = set(), 0
    for root in roots:
        for path in sorted(Path(root).rglob("*")):
            if path.suffix not in ENDINGS or path.is_symlink() or not path.is_file():
                continue
            try:
                text = path.read_text()[:LONGEST_TEXT]
            except (UnicodeDecodeError, OSError):
                continue
            digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
            if len(text) < 200 or digest in seen:
                continue
            seen.add(digest)
            yield text
            total += len(text)
            if total > limit_bytes:
                return


def windows(model: str, roots: list[str], stride: int, count: int) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
    """Word pieces ``[n, 64]`` and documents ``[n]`` of up to ``count`` windows, drawn from all documents, in order."""
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_file(f"{model}/tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    first, last = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    read = list(texts(roots, limit_bytes=count * stride * 6))
    chunks, documents = [], []
    for start in range(0, len(read), 512):
        for number, encoding in enumerate(
            tokenizer.encode_batch_fast(read[start : start + 512], add_special_tokens=False)
        ):
            ids = np.array(encoding.ids, np.uint16)
            if len(ids) < WINDOW:
                continue
            of = np.lib.stride_tricks.sliding_window_view(ids, WINDOW - 2)[::stride]
            chunks.append(np.pad(of, ((0, 0), (1, 1))))
            chunks[-1][:, 0], chunks[-1][:, -1] = first, last
            documents.append(np.full(len(of), start + number, np.int32))
    every, of_document = np.concatenate(chunks), np.concatenate(documents)
    kept = np.sort(np.random.default_rng(0).choice(len(every), min(count, len(every)), replace=False))
    return every[kept], of_document[kept]


def embed(model: str, chunks: NDArray[np.uint16], out: NDArray[np.float16]) -> None:
    import torch
    from transformers import AutoModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.bfloat16
    net = AutoModel.from_pretrained(model, dtype=dtype, attn_implementation="sdpa").to(device).eval()
    with torch.inference_mode():
        for start in range(0, len(chunks), BATCH):
            ids = torch.from_numpy(chunks[start : start + BATCH].astype(np.int64)).to(device)
            mean = net(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.float().mean(dim=1)
            out[start : start + BATCH] = torch.nn.functional.normalize(mean, dim=1).half().cpu().numpy()


def between(vectors: NDArray[np.float16], documents: NDArray[np.int32], out: NDArray[np.float16], steps: int) -> None:
    """``[n * steps, d]``: after each vector ``steps - 1`` on the way to the next of its document, where a window in
    between would lie about; at a document's end, near itself. Noise of a hundredth keeps them from being copies."""
    import torch

    random = torch.Generator().manual_seed(0)
    following = np.minimum(np.arange(len(vectors)) + 1, len(vectors) - 1)
    following = np.where(documents[following] == documents, following, np.arange(len(vectors)))
    noise = 0.01 * torch.randn((BATCH, steps, DIMENSION), generator=random) / DIMENSION**0.5
    for start in range(0, len(vectors), BATCH):
        a = torch.from_numpy(vectors[start : start + BATCH]).float()[:, None]
        b = torch.from_numpy(vectors[following[start : start + BATCH]]).float()[:, None]
        share = (torch.arange(steps) / steps)[:, None]
        mixed = a + share * (b - a) + noise[: len(a)] * (share > 0)
        rows = torch.nn.functional.normalize(mixed, dim=-1).half().reshape(-1, DIMENSION).numpy()
        out[start * steps : start * steps + len(rows)] = rows


def drawn(count: int) -> tuple[NDArray[np.float16], NDArray[np.int32]]:
    """Vectors in nested clusters on the sphere with a decaying spectrum, in documents of ten; only to measure rates."""
    rng = np.random.default_rng(0)
    scale = (np.arange(1, DIMENSION + 1) ** -0.5).astype(np.float32)
    topics = rng.standard_normal((max(1, count // 500), DIMENSION), dtype=np.float32) * scale
    vectors = np.empty((count, DIMENSION), np.float16)
    for start in range(0, count, 65_536):
        size = min(65_536, count - start)
        block = topics[rng.integers(len(topics), size=size)]
        block += 0.7 * rng.standard_normal((size, DIMENSION), dtype=np.float32) * scale
        vectors[start : start + size] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return vectors, (np.arange(count) // 10).astype(np.int32)


def write(folder: Path, vectors: NDArray[np.float16] | None, documents: NDArray[np.int32]) -> None:
    """Write the arrays that the stages read; ``vectors`` None if they are already there."""
    folder.mkdir(parents=True, exist_ok=True)
    if vectors is not None:
        np.save(folder / "embeddings.npy", vectors)
    np.save(folder / "chunk2seq.npy", documents)
    (folder / "index.spec.json").write_text(json.dumps([{name: f"{name}.npy" for name in NAMES}]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--model", help="folder of a sentence-transformer with 384 dimensions (default: draw vectors)")
    parser.add_argument("--text", nargs="+", default=["/usr/share", "/usr/lib/python3"], help="folders of text files")
    parser.add_argument("--stride", type=int, default=WINDOW)
    parser.add_argument("--between", type=int, default=1, help="vectors per window; all but one are interpolated")
    of = parser.parse_args()
    if not of.model:
        write(of.folder, *drawn(of.count))
        return
    of.folder.mkdir(parents=True, exist_ok=True)
    chunks, documents = windows(of.model, of.text, of.stride, of.count // of.between)
    vectors = np.empty((len(chunks), DIMENSION), np.float16)
    embed(of.model, chunks, vectors)
    shape = len(chunks) * of.between, DIMENSION
    out = open_memmap(of.folder / "embeddings.npy", "w+", np.float16, shape)
    between(vectors, documents, out, of.between)
    out.flush()
    write(of.folder, None, documents.repeat(of.between))
    print(f"{len(out):,} vectors: {len(chunks):,} windows of {int(documents.max()) + 1:,} documents")


if __name__ == "__main__":
    main()
