"""Trains a tiny RETRO-like model on a dataset for some steps, with its neighbours and without.

python examples/train_retro.py s3://bucket/datasets/news --steps 100

A causal transformer of two layers whose second one attends to the retrieved neighbours of the previous chunk, as in
"Improving language models by retrieving from trillions of tokens" (Borgeaud et al., 2022): a token may use the
neighbours of a chunk only once that chunk is complete. It is an example of reading, not a model to use.
"""

import argparse
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.utils.data import DataLoader

from retro_data import Split, open_dataset
from retro_data.torch import WindowStream

LENGTH, NEIGHBOURS, WIDTH, HEADS = 4, 2, 64, 4


class TinyRetro(nn.Module):
    """Logits ``[n, tokens, vocabulary]`` of the next token, from tokens ``[n, tokens]`` and the tokens of neighbours
    ``[n, chunks, k, 2 * chunk_size]``."""

    def __init__(self, vocabulary: int, chunk_size: int, pad_id: int) -> None:
        super().__init__()
        self.chunk_size, self.pad_id = chunk_size, pad_id
        self.token = nn.Embedding(vocabulary, WIDTH)
        nn.init.normal_(self.token.weight, std=0.1)
        self.place = nn.Parameter(torch.randn(LENGTH * chunk_size, WIDTH) * 0.1)
        self.place_in_chunk = nn.Parameter(torch.randn(chunk_size, WIDTH) * 0.3)
        self.place_in_neighbour = nn.Parameter(torch.randn(2 * chunk_size, WIDTH) * 0.3)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, 0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.cross = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.nothing = nn.Parameter(torch.zeros(1, 1, WIDTH))  # Attended to where there is no neighbour.
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor, neighbours: Tensor | None) -> Tensor:
        hidden = self.token(tokens) + self.place[: tokens.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        hidden = self.layers[0](hidden, src_mask=mask, is_causal=True)
        if neighbours is not None:
            hidden = hidden + self.attended(hidden, neighbours)
        hidden = self.layers[1](hidden, src_mask=mask, is_causal=True)
        return functional.linear(self.norm(hidden), self.token.weight)

    def attended(self, hidden: Tensor, neighbours: Tensor) -> Tensor:
        """Chunked cross-attention ``[n, tokens, width]``."""
        size, (batch, tokens, _) = self.chunk_size, hidden.shape
        # The last token of a chunk and all but the last of the next one see the neighbours of that chunk.
        queries = functional.pad(hidden[:, size - 1 :], (0, 0, 0, size - 1)).reshape(-1, size, WIDTH)
        found = neighbours.reshape(batch * (tokens // size), -1, neighbours.shape[-1])
        keys = (self.token(found) + self.place_in_neighbour).flatten(1, 2)
        keys = torch.cat([self.nothing.expand(len(keys), -1, -1), keys], dim=1)
        padding = functional.pad(found.flatten(1) == self.pad_id, (1, 0), value=False)
        out, _ = self.cross(self.norm(queries) + self.place_in_chunk, keys, keys, key_padding_mask=padding)
        return functional.pad(out.reshape(batch, tokens, WIDTH), (0, 0, size - 1, 0))[:, :tokens]


def batches(split: Split, batch_size: int, workers: int) -> Iterator[Mapping[str, Any]]:
    """Batches of epoch after epoch."""
    stream = WindowStream(split.windows(LENGTH), batch_size, seed=1, k=NEIGHBOURS, drop_last=True)
    if len(stream) == 0:
        raise SystemExit(f"the dataset has fewer than {batch_size} windows of {LENGTH} chunks")
    for epoch in range(2**31):
        stream.set_epoch(epoch)
        yield from DataLoader(stream, batch_size=None, num_workers=workers)


def train(
    split: Split, vocabulary: int, steps: int, *, retrieval: bool, batch_size: int = 16, workers: int = 0
) -> list[float]:
    """The loss of every step, in nats a token."""
    torch.manual_seed(0)
    model = TinyRetro(vocabulary, split.chunk_size, split.pad_id)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for batch in islice(batches(split, batch_size, workers), steps):
        logits = model(batch["input_ids"], batch["neighbour_ids"] if retrieval else None)
        loss = functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dataset", help="<root>/<dataset>, an exported folder or a dataset spec")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    with open_dataset(arguments.dataset) as dataset:
        split = dataset.train
        vocabulary = dataset.manifest.get("identity", {}).get("vocabulary_size") or int(split[:].tokens.max()) + 1
        for retrieval in (False, True):
            losses = train(split, vocabulary, arguments.steps, retrieval=retrieval, workers=arguments.workers)
            last = losses[-10:]
            print(f"{'with' if retrieval else 'without'} neighbours: {losses[0]:.3f} -> {sum(last) / len(last):.3f}")


if __name__ == "__main__":
    main()
