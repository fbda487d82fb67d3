"""The operators written with torch's own equal the native ones."""

import numpy as np
import pytest
from sparse_cases import random_sites

torch = pytest.importorskip("torch", reason="torch is an optional extra of s4d-ops")
from s4d_ops import sparse_composite, sparse_torch  # noqa: E402


@pytest.mark.parametrize("count", [150, 1, 0])
def test_equal_to_the_operators(count):
    shape, rng = (6, 7, 8), np.random.default_rng(count)
    sites = torch.from_numpy(random_sites(rng, shape, 2, count))
    book = sparse_torch.strided_rulebook(
        sites, shape, 2, (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1)
    )
    x = torch.from_numpy(rng.standard_normal((len(sites), 5)))
    weight = torch.from_numpy(rng.standard_normal((4, 27, 5)))
    bias = torch.from_numpy(rng.standard_normal(4))
    operators = torch.ops.s4d
    out = operators.sparse_convolution(x, weight, book.table, bias, False)
    close = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(
        sparse_composite.convolution(x, weight, book.table, bias, False), out, **close
    )
    grad = torch.from_numpy(rng.standard_normal(tuple(out.shape)))
    back = book.inverse_table()
    torch.testing.assert_close(
        sparse_composite.convolution(grad, weight, back, None, True),
        operators.sparse_convolution(grad, weight, back, None, True), **close,
    )  # fmt: skip
    torch.testing.assert_close(
        sparse_composite.weight_gradient(x, grad, book.table),
        operators.sparse_weight_gradient(x, grad, book.table), **close,
    )  # fmt: skip
    for order in ([0, 1, 2], [2, 0, 1], [1, 0, 2]):
        layout = (list(shape), 2, order)
        dense = operators.sparse_scatter_dense(x, sites, *layout)
        assert torch.equal(sparse_composite.scatter_dense(x, sites, *layout), dense)
        assert torch.equal(sparse_composite.gather_dense(dense, sites, *layout), x)


def test_int8_codes_against_integers():
    shape, rng = (5, 6, 7), np.random.default_rng(0)
    sites = torch.from_numpy(random_sites(rng, shape, 1, 90))
    book = sparse_torch.submanifold_rulebook(sites, shape, 1, (3, 3, 3), (1, 1, 1))
    codes = torch.from_numpy(rng.integers(-127, 128, (90, 6)).astype(np.int8))
    weight = torch.from_numpy(rng.integers(-127, 128, (4, 3, 3, 3, 6)).astype(np.int8))
    sums = sparse_composite.convolution(
        codes.double(), weight.flatten(1, 3).double(), book.table, None, False
    )
    ones = torch.ones(4)
    assert torch.equal(sparse_torch.convolution_int8(codes, weight, ones, book), sums.float())
    scale, bias = torch.rand(4), torch.randn(4)
    torch.testing.assert_close(
        sparse_torch.convolution_int8(codes, weight, scale, book, bias),
        (sums * scale + bias).float(), rtol=1e-5, atol=1e-2,
    )  # fmt: skip
