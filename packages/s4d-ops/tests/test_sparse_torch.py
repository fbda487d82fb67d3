"""The torch functions: gradients, types, and the dense convolution of torch itself."""

import itertools

import numpy as np
import pytest
import sparse_cases

from s4d_ops import InvalidInputError, sparse

torch = pytest.importorskip("torch", reason="torch is an optional extra of s4d-ops")
from s4d_ops import sparse_torch  # noqa: E402

ONES = (1, 1, 1)


def make(seed=0, shape=(6, 7, 8), batch=2, count=120, cin=5, cout=6, kernel=(3, 3, 3)):
    _, *arrays = sparse_cases.make(seed, shape, batch, count, cin, cout, kernel)
    return tuple(torch.from_numpy(array) for array in arrays)


@pytest.mark.parametrize(
    ("stride", "padding", "dilation"),
    [((2, 2, 2), (1, 1, 1), ONES), ((2, 1, 1), (0, 0, 0), ONES), (ONES, (1, 1, 1), (1, 2, 1))],
)
def test_equals_conv3d(stride, padding, dilation):
    sites, features, weight = make()
    features.requires_grad_()
    weight.requires_grad_()
    shape = (6, 7, 8)
    book = sparse_torch.strided_rulebook(sites, shape, 2, (3, 3, 3), stride, padding, dilation)
    out = sparse_torch.convolution(features, weight, book)
    dense_in = sparse_torch.to_dense(features, sites, shape, 2)
    dense = torch.nn.functional.conv3d(
        dense_in, weight.permute(0, 4, 1, 2, 3), None, stride, padding, dilation
    )
    at = book.out_indices.long()
    want = dense[at[:, 0], :, at[:, 1], at[:, 2], at[:, 3]]
    torch.testing.assert_close(out, want, rtol=0, atol=1e-12)
    assert book.out_shape == tuple(dense.shape[2:])
    grad = torch.randn_like(out)
    got = torch.autograd.grad(out, (features, weight), grad)
    expected = torch.autograd.grad(want, (features, weight), grad)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("kind", "inverse"), list(itertools.product(("subm", "strided"), (False, True)))
)
def test_gradcheck(kind, inverse):
    sites, _, weight = make(1, (4, 4, 5), 1, 20, 3, 4)
    if kind == "subm":
        book = sparse_torch.submanifold_rulebook(sites, (4, 4, 5), 1, (3, 3, 3), ONES)
    else:
        book = sparse_torch.strided_rulebook(sites, (4, 4, 5), 1, (3, 3, 3), (2, 2, 2), ONES, ONES)
    rows = len(book.out_indices) if inverse else len(sites)
    x = torch.randn(rows, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda f, w, b: sparse_torch.convolution(f, w, book, b, inverse),
        (x, weight.clone().requires_grad_(), bias),
    )


def test_to_dense_gradient():
    sites, features, _ = make(2, (3, 4, 5), 2, 30, 4)
    assert torch.autograd.gradcheck(
        lambda f: sparse_torch.to_dense(f, sites, (3, 4, 5), 2, (2, 0, 1)),
        features.requires_grad_(),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_computes_in_float32(dtype):
    sites, features, weight = make(3)
    book = sparse_torch.submanifold_rulebook(sites, (6, 7, 8), 2, (3, 3, 3), ONES)
    features, weight = features.to(dtype), weight.float().requires_grad_()
    out = sparse_torch.convolution(features, weight, book)
    assert out.dtype == dtype
    full = sparse_torch.convolution(features.float(), weight, book)
    torch.testing.assert_close(out, full.to(dtype), rtol=0, atol=0)
    out.float().sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32


def test_same_as_numpy_door():
    sites, features, weight = make(4)
    book = sparse_torch.strided_rulebook(sites, (6, 7, 8), 2, (3, 3, 3), (2, 2, 2), ONES, ONES)
    other = sparse.strided_rulebook(sites.numpy(), (6, 7, 8), 2, 3, 2, 1)
    np.testing.assert_array_equal(book.table.numpy(), other.table)
    out = sparse_torch.convolution(features, weight, book)
    np.testing.assert_array_equal(
        out.numpy(), sparse.convolution(features.numpy(), weight.numpy(), other)
    )
    points = torch.rand(500, 5) * 10
    got = sparse_torch.voxelize(points, (0, 0, 0), (8, 8, 8), (1, 1, 2), (8, 8, 4), 3, 100)
    want = sparse.voxelize(
        points.numpy(), (0, 0, 0), (8, 8, 8), (1, 1, 2), max_points=3, max_voxels=100
    )
    np.testing.assert_array_equal(got.cells.numpy(), want.cells)
    np.testing.assert_array_equal(got.features.numpy(), want.features)
    assert got.refused_points == want.refused_points
    assert got.outside_points == want.outside_points


def test_bad_input_is_named():
    sites, features, weight = make()
    with pytest.raises(InvalidInputError, match="both"):
        sparse_torch.submanifold_rulebook(sites[[0, 0]], (6, 7, 8), 2, (3, 3, 3), ONES)
    with pytest.raises(InvalidInputError, match="outside"):
        sparse_torch.submanifold_rulebook(sites, (6, 7, 3), 2, (3, 3, 3), ONES)
    book = sparse_torch.submanifold_rulebook(sites, (6, 7, 8), 2, (3, 3, 3), ONES)
    with pytest.raises(InvalidInputError, match="channels"):
        sparse_torch.convolution(features[:, :3], weight, book)
    with pytest.raises(InvalidInputError, match="entries"):
        sparse_torch.convolution(features[:5], weight, book)
