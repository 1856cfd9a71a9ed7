"""Computes embeddings of rows of token ids with the layers of a transformer: packed on GPUs, or padded.

A backend yields arrays float16 ``[n, d]`` of some rows each, in order, for the rows of ``parts``.
"""

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retro_ops.compute import device
from retro_ops.compute.fp16_scores import Tensor
from retro_ops.embedding import pooling
from retro_ops.embedding.architectures import packed_layers
from retro_ops.embedding.layers import Heads
from retro_ops.embedding.model import Model
from retro_ops.tokens import packing

LEAST_ROW_TOKENS = 32
"""A packed batch has at most as many rows as would fill it with this many ids each."""

PACKED = "retro_packed"

Vectors: TypeAlias = NDArray[np.float16]
Backend: TypeAlias = Callable[[Iterable[packing.Rows]], Iterator[Vectors]]
Hidden: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(ids, positions within the row, starts of the rows) -> last hidden state ``[tokens, d]``, of packed rows."""


def padded(
    load: Callable[[], Callable[[Tensor, Tensor], Tensor]], dimension: int, where: str, pad_id: int, tokens: int
) -> Backend:
    """Runs rows of similar length together, padded to the longest, at most ``tokens`` ids in a batch.

    ``load``: makes the function of ids and mask ``[rows, longest]`` that gives vectors, on first use. Each part alone
    decides how its rows are batched. On a CPU each core has batches of its own: cores that share a batch wait for each
    other at every product, and vectors would depend on the number of cores.
    """
    import torch

    def embed(part: packing.Rows, chosen: NDArray[np.int64]) -> Vectors:
        ids, mask = (torch.from_numpy(array).to(where) for array in packing.padded(part, chosen, pad_id))
        with torch.inference_mode():
            return half_units(load()(ids, mask)[:, :dimension])

    def backend(parts: Iterable[packing.Rows]) -> Iterator[Vectors]:
        load()  # Once, before threads need it.
        threads = device.cores() if where == "cpu" else 1
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for part in parts:
                vectors = np.empty((len(part), dimension), np.float16)
                batches = list(packing.batches(part.lengths, tokens))
                for chosen, found in zip(batches, pool.map(partial(embed, part), batches), strict=True):
                    vectors[chosen] = found
                yield vectors

    return backend


def padded_layers(model: Model, dtype: str, where: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The layers of ``model`` in ``dtype``, and the modules of sentence-transformers behind them in float32."""
    means = pooling.is_plain_mean(model)
    layers = _replica(model, dtype, where)
    after = [copy.deepcopy(module).float().to(where) for module in list(model.network)[1:]]

    def vectors(ids: Tensor, mask: Tensor) -> Tensor:
        hidden = layers(input_ids=ids, attention_mask=mask, return_dict=True).last_hidden_state.float()
        if means:  # The sum has the direction of the mean; earlier versions stored its bytes.
            return (hidden * mask[:, :, None]).sum(dim=1)
        features = {"token_embeddings": hidden, "attention_mask": mask}
        for module in after:
            features = module(features)
        return features["sentence_embedding"]

    return vectors


def packed(load: Callable[[str], tuple[Hidden, pooling.Pool]], devices: Sequence[str], tokens: int) -> Backend:
    """Packs rows without padding. ``load`` makes the copy of the model on each of ``devices``, on first use."""
    replicas: list[Callable[[packing.Packed], Callable[[], Vectors]]] = []

    def backend(parts: Iterable[packing.Rows]) -> Iterator[Vectors]:
        if not replicas:
            replicas.extend(partial(_submit, *load(where), where) for where in devices)
        return _in_turn(replicas, tokens, parts)

    return backend


def own_layers(model: Model, dtype: str, where: str) -> tuple[Hidden, pooling.Pool]:
    """Our layers for the model on a device, and what follows them. UnsupportedError if there are none."""
    replica = _replica(model, dtype, where)
    return packed_layers(replica, model.longest), pooling.packed(model, where)


def its_layers(model: Model, dtype: str, where: str) -> tuple[Hidden, pooling.Pool]:
    """The layers of transformers with our attention, and what follows them."""
    import torch
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, _attend_packed)
    replica = _replica(model, dtype, where)
    replica.set_attn_implementation(PACKED)
    padding = getattr(getattr(replica, "embeddings", None), "padding_idx", None)
    first = 0 if padding is None else padding + 1

    def hidden(ids: Tensor, positions: Tensor, starts: Tensor) -> Tensor:
        more = {}
        if getattr(replica.config, "type_vocab_size", 0):
            more["token_type_ids"] = torch.zeros_like(ids)[None]
        return replica(
            input_ids=ids[None], position_ids=positions[None] + first, starts_of_rows=starts, return_dict=True, **more
        ).last_hidden_state[0]

    return hidden, pooling.packed(model, where)


def half_units(vectors: Tensor) -> Vectors:
    """``vectors`` with length 1, as float16 on the CPU.

    A vector of zeros, which a model may give for a text without any token, has no direction and gets a fixed one.
    """
    import torch

    units = torch.nn.functional.normalize(vectors.float(), dim=1)
    units = torch.where((vectors == 0).all(dim=1, keepdim=True), vectors.shape[1] ** -0.5, units)
    return np.asarray(units.half().cpu().numpy())


def _replica(model: Model, dtype: str, where: str) -> Any:
    import torch

    replica = copy.deepcopy(model.network[0].model).to(where, getattr(torch, dtype)).eval()
    if getattr(replica, "pooler", None) is not None:
        replica.pooler = None  # It only computes an output that is not used.
    return replica


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


def _submit(hidden_of: Hidden, pool: pooling.Pool, where: str, batch: packing.Packed) -> Callable[[], Vectors]:
    """Starts to embed ``batch``. The returned function waits for its vectors, float16 ``[rows, d]``."""
    import torch

    with torch.inference_mode(), torch.cuda.device(where):
        ids, starts = (
            torch.from_numpy(array).pin_memory().to(where, non_blocking=True) for array in (batch.ids, batch.starts)
        )
        every = torch.arange(len(ids), dtype=torch.int32, device=where)
        row = torch.searchsorted(starts, every, right=True, out_int32=True) - 1
        # Nothing behind the last row is used, but each position must be valid.
        positions = torch.where(every < starts[-1], every - starts[row], 0)
        end = int(batch.starts[-1])
        unit = pool(hidden_of(ids, positions, starts)[:end], positions[:end], starts)[: batch.rows].half()
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
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **of_batch: Any
) -> tuple[Tensor, None]:
    """Attention within each row of a packed batch, with the signature that transformers calls.

    ``[1, heads, tokens, width]`` -> ``[1, tokens, heads, width]``.
    """
    import torch

    from retro_ops.embedding import kernels

    if of_batch.get("softcap") is not None:
        raise NotImplementedError("attention with capped scores")
    window = of_batch.get("sliding_window")
    back = None if window is None else window - 1
    heads = Heads(
        query.shape[1],
        key.shape[1],
        query.shape[3],
        of_batch.get("scaling") or query.shape[3] ** -0.5,
        back,
        0 if getattr(module, "is_causal", False) else back,
    )
    qkv = torch.cat([array[0].transpose(0, 1).flatten(1) for array in (query, key, value)], 1)
    found = kernels.attend(qkv, of_batch["starts_of_rows"], heads)
    return found.view(1, len(found), heads.queries, heads.width), None
