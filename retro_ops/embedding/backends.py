"""Computes embeddings of rows of token ids with the layers of a transformer: rows padded, or packed on GPUs."""

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retro_ops.compute import device
from retro_ops.embedding import bert
from retro_ops.tokens import packing

LEAST_ROW_TOKENS = 32
"""A packed batch has at most as many rows as would fill it with this many ids each."""

PACKED = "retro_packed"

Vectors: TypeAlias = NDArray[np.float16]
Backend: TypeAlias = Callable[[Iterable[packing.Rows]], Iterator[Vectors]]
Hidden: TypeAlias = Callable[[Any, Any, Any], Any]
"""(ids, positions within the row, starts of the rows) -> last hidden state ``[tokens, d]``, of packed rows."""


def padded(module: Any, where: str, tokens: int, pad_id: int, parts: Iterable[packing.Rows]) -> Iterator[Vectors]:
    """Embeds rows of similar length together, padded to the longest.

    Yields an array float16 ``[n, d]`` for each of ``parts``, whose rows alone decide how they are batched. On a CPU
    each core has batches of its own: cores that share a batch wait for each other at every product, and vectors would
    depend on the number of cores.
    """
    import torch

    def embed(part: packing.Rows, chosen: NDArray[np.int64]) -> Vectors:
        ids, mask = (torch.from_numpy(array).to(where) for array in packing.padded(part, chosen, pad_id))
        with torch.inference_mode():
            hidden = module(input_ids=ids, attention_mask=mask, return_dict=True).last_hidden_state
            sums = (hidden.float() * mask[:, :, None]).sum(dim=1)
            unit = torch.nn.functional.normalize(sums, dim=1)  # The mean has the direction of the sum.
        return np.asarray(unit.half().cpu().numpy())

    threads = device.cores() if where == "cpu" else 1
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for part in parts:
            vectors = np.empty((len(part), module.config.hidden_size), np.float16)
            batches = list(packing.batches(part.lengths, tokens))
            for chosen, found in zip(batches, pool.map(partial(embed, part), batches), strict=True):
                vectors[chosen] = found
            yield vectors


def packed(name: str, tokens: int, load: Callable[[str], Hidden]) -> tuple[str, Backend]:
    """A description and a backend that packs rows without padding. ``load`` makes the copy of the model on each GPU."""
    import torch

    def embed(parts: Iterable[packing.Rows]) -> Iterator[Vectors]:
        if not replicas:
            replicas.extend(partial(_submit, load(where), where) for where in devices)
        return _in_turn(replicas, tokens, parts)

    devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    replicas: list[Callable[[packing.Packed], Callable[[], Vectors]]] = []
    return f"{name}, {len(devices)} GPU{'s' if len(devices) > 1 else ''}", embed


def own_layers(module: Any, where: str) -> Hidden:
    return bert.Bert.of(copy.deepcopy(module).to(where))


def its_layers(module: Any, longest: int, where: str) -> Hidden:
    """The layers of transformers, with an attention over packed rows. ``longest``: ids of the longest row."""
    import torch
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, _attend_packed)
    replica = copy.deepcopy(module).to(where)
    replica.set_attn_implementation(PACKED)

    def hidden(ids: Any, positions: Any, starts: Any) -> Any:
        return replica(
            input_ids=ids[None],
            position_ids=positions[None],
            token_type_ids=torch.zeros_like(ids)[None],
            cu_seq_lens_q=starts,
            max_length_q=longest,
            return_dict=True,
        ).last_hidden_state[0]

    return hidden


def _in_turn(
    replicas: Sequence[Callable[[packing.Packed], Callable[[], Vectors]]], tokens: int, parts: Iterable[packing.Rows]
) -> Iterator[Vectors]:
    """Embeds rows one after the other without padding, always in batches of one shape, so that the vector of a row does
    not depend on the others. GPUs take turns; each has a batch to work on while the next ones are made."""
    waiting: deque[Callable[[], Vectors]] = deque()
    for number, batch in enumerate(packing.pack(parts, tokens, tokens // LEAST_ROW_TOKENS)):
        waiting.append(replicas[number % len(replicas)](batch))
        if len(waiting) > 2 * len(replicas):
            yield waiting.popleft()()
    while waiting:
        yield waiting.popleft()()


def _submit(hidden_of: Hidden, where: str, batch: packing.Packed) -> Callable[[], Vectors]:
    """Starts to embed ``batch``. The returned function waits for its vectors, float16 ``[rows, d]``."""
    import torch

    with torch.inference_mode(), torch.cuda.device(where):
        ids, starts = (
            torch.from_numpy(array).pin_memory().to(where, non_blocking=True) for array in (batch.ids, batch.starts)
        )
        every = torch.arange(len(ids), dtype=torch.int32, device=where)
        row = torch.searchsorted(starts, every, right=True, out_int32=True) - 1
        # Results behind the last row are not used, but each position must be valid.
        positions = torch.where(every < starts[-1], every - starts[row], 0)
        hidden = hidden_of(ids, positions, starts)
        # On a GPU the last bag extends to the end of the indices, even beyond the last offset (pytorch#76885). Its row
        # is never used.
        means = torch.nn.functional.embedding_bag(every, hidden, starts, mode="mean", include_last_offset=True)
        unit = torch.nn.functional.normalize(means[: batch.rows].float(), dim=1).half()
        found = torch.empty(unit.shape, dtype=torch.float16, pin_memory=True)
        found.copy_(unit, non_blocking=True)
        done = torch.cuda.Event()
        done.record()

    def wait() -> Vectors:
        done.synchronize()
        vectors: Vectors = found.numpy()
        return vectors

    return wait


def _attend_packed(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **of_batch: Any
) -> tuple[Any, None]:
    """Attention within each row of a packed batch, with the signature that transformers calls.

    ``[1, heads, tokens, width]`` -> ``[1, tokens, heads, width]``.
    """
    from torch.nn.attention.varlen import varlen_attn

    starts, longest = of_batch["cu_seq_lens_q"], of_batch["max_length_q"]
    rows = (array[0].transpose(0, 1) for array in (query, key, value))
    return varlen_attn(*rows, starts, starts, longest, longest)[None], None
