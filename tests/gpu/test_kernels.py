"""Our kernels compute the same as torch's functions, for any shape."""

import itertools

import numpy as np
import pytest

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("heads", "width"), [(12, 32), (2, 64), (3, 20)])
def test_attention_within_rows_is_that_of_torch(heads: int, width: int) -> None:
    import torch

    from retro_ops.embedding import kernels

    lengths = [1, 31, 32, 33, 66, 5, 256, 2]
    starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    end, d = int(starts[-1]), heads * width
    torch.manual_seed(0)
    qkv = torch.randn((end + 40, 3 * d), device="cuda").half()
    of_rows = torch.from_numpy(np.concatenate((starts, [end, end])).astype(np.int32)).cuda()
    found = kernels.attend(qkv, of_rows, heads)
    for start, stop in itertools.pairwise(starts):
        q, k, v = qkv[start:stop].float().reshape(-1, 3, heads, width).permute(1, 2, 0, 3)
        wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(-1, d)
        torch.testing.assert_close(found[start:stop].float(), wanted, atol=3e-3, rtol=3e-3)


@pytest.mark.parametrize("shape", [(1, 384), (1001, 384), (77, 100), (9, 1024)])
def test_normalisation_is_that_of_torch(shape: tuple[int, int]) -> None:
    import torch

    from retro_ops.embedding import kernels

    torch.manual_seed(0)
    x, scale, shift = (torch.randn(of, device="cuda").half() for of in (shape, shape[1:], shape[1:]))
    wanted = torch.nn.functional.layer_norm(x.float(), shape[1:], scale.float(), shift.float(), 1e-12)
    found = kernels.normalise(x, scale, shift, 1e-12)
    assert found is x
    torch.testing.assert_close(found.float(), wanted, atol=3e-3, rtol=3e-3)
