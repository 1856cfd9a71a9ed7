"""Our kernels compute the same as plain torch, for any shape."""

import dataclasses
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.gpu

LENGTHS = [1, 15, 16, 17, 31, 32, 33, 48, 49, 63, 66, 5, 256, 2]


def heads(queries: int, keys: int, width: int, **more: Any) -> Any:
    from retro_ops.embedding.layers import Heads

    return Heads(queries, keys, width, width**-0.5, **more)


def rotary(width: int, *, scaled: bool) -> Any:
    import torch

    from retro_ops.embedding.layers import Rotary

    angles = torch.rand((max(LENGTHS), width // 2), device="cuda") * 6
    made = Rotary(angles.cos(), angles.sin())
    if not scaled:
        return made
    query_scale, key_scale = (torch.rand(width, device="cuda") + 0.5 for _ in range(2))
    return dataclasses.replace(made, query_scale=query_scale, key_scale=key_scale, epsilon=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "name", ["bert", "narrow", "odd", "biased", "causal", "window", "causal window", "wide", "grouped"]
)
def test_attention_within_rows_is_that_of_torch(name: str, dtype: str) -> None:
    import reference_kernels
    import torch

    from retro_ops.embedding import kernels

    torch.manual_seed(0)
    shape = {
        "bert": lambda: heads(12, 12, 32),
        "narrow": lambda: heads(2, 2, 64),
        "odd": lambda: heads(3, 3, 20),
        "biased": lambda: heads(4, 4, 64, bias=torch.randn((4, 2 * 300 - 1), device="cuda")),
        "causal": lambda: heads(4, 2, 64, ahead=0),
        "window": lambda: heads(4, 4, 64, back=40, ahead=40),
        "causal window": lambda: heads(4, 4, 64, back=7, ahead=0),
        "wide": lambda: heads(3, 1, 256),
        "grouped": lambda: heads(16, 8, 128, ahead=0),
    }[name]()
    starts = np.concatenate(([0], np.cumsum(LENGTHS))).astype(np.int32)
    end = int(starts[-1])
    qkv = torch.randn((end + 40, (shape.queries + 2 * shape.keys) * shape.width), device="cuda")
    qkv = qkv.to(getattr(torch, dtype))
    of_rows = torch.from_numpy(np.concatenate((starts, [end, end])).astype(np.int32)).cuda()
    found = kernels.attend(qkv, of_rows, shape)[:end]
    wanted = reference_kernels.attend(qkv, of_rows, shape)[:end]
    near = 4e-3 if dtype == "float16" else 3e-2
    torch.testing.assert_close(found.float(), wanted.float(), atol=near, rtol=near)


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize(("queries", "keys", "width"), [(4, 4, 64), (3, 1, 256), (16, 8, 128), (3, 3, 20)])
def test_rotation_by_position_is_that_of_torch(queries: int, keys: int, width: int, scaled: bool) -> None:
    import reference_kernels
    import torch

    from retro_ops.embedding import kernels

    torch.manual_seed(0)
    shape = heads(queries, keys, width)
    positions = torch.randint(max(LENGTHS), (1003,), device="cuda", dtype=torch.int32)
    found = torch.randn((1003, (queries + 2 * keys) * width), device="cuda").half()
    wanted, by = found.clone(), rotary(width, scaled=scaled)
    kernels.rotate(found, positions, shape, by)
    reference_kernels.rotate(wanted, positions, shape, by)
    torch.testing.assert_close(found.float(), wanted.float(), atol=4e-3, rtol=4e-3)
    assert torch.equal(found[:, (queries + keys) * width :], wanted[:, (queries + keys) * width :])  # Values stay.


@pytest.mark.parametrize("positioned", [True, False])
@pytest.mark.parametrize("width", [384, 100, 768])
def test_words_and_positions_are_those_of_torch(width: int, positioned: bool) -> None:
    import reference_kernels
    import torch

    from retro_ops.embedding import kernels
    from retro_ops.embedding.layers import Norm

    torch.manual_seed(0)
    words, table, scale, shift = (
        torch.randn(of, device="cuda").half() for of in ((999, width), (66, width), width, width)
    )
    ids = torch.randint(999, (1003,), device="cuda", dtype=torch.int32)
    positions = torch.randint(66, (1003,), device="cuda", dtype=torch.int32)
    of = (words, ids, table if positioned else None, positions, Norm(scale, shift, 1e-6))
    torch.testing.assert_close(kernels.embed(*of), reference_kernels.embed(*of), atol=4e-3, rtol=4e-3)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("shape", [(1, 384), (1001, 384), (77, 100), (9, 1024), (5, 4096)])
def test_normalisation_is_that_of_torch(shape: tuple[int, int], centred: bool) -> None:
    import reference_kernels
    import torch

    from retro_ops.embedding import kernels

    torch.manual_seed(0)
    x, scale, shift = (torch.randn(of, device="cuda").half() for of in (shape, shape[1:], shape[1:]))
    residual = torch.randn(shape, device="cuda").half()
    for more in ({}, {"residual": residual}, {"out": torch.empty_like(x)}):
        wanted = reference_kernels.normalise(x.clone(), scale, shift, 1e-6, centred=centred, **more).float()
        found = kernels.normalise(x.clone(), scale, shift, 1e-6, centred=centred, **more)
        torch.testing.assert_close(found.float(), wanted, atol=4e-3, rtol=4e-3)
    kernels.normalise(x, scale, None, 1e-6, centred=centred, out=residual, residual=residual)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("shape", [(3, 1152), (1000, 3072), (7, 50)])
def test_a_gated_activation_is_that_of_torch(shape: tuple[int, int], activation: str) -> None:
    import reference_kernels
    import torch

    from retro_ops.embedding import kernels

    torch.manual_seed(0)
    x = torch.randn((shape[0], 2 * shape[1]), device="cuda").half()
    torch.testing.assert_close(kernels.gate(x, activation), reference_kernels.gate(x, activation), atol=4e-3, rtol=4e-3)
