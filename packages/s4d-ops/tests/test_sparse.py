"""Sparse convolution on numpy arrays against dense loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_cases import dense_convolution, make, random_sites, to_grid

from s4d_ops import InvalidInputError, sparse

triples = st.tuples(*[st.integers(1, 3)] * 3)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    batch=st.integers(1, 3),
    count=st.integers(0, 120),
    channels=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    kernel=triples,
    stride=triples,
    padding=st.tuples(*[st.integers(0, 2)] * 3),
    dilation=st.tuples(*[st.integers(1, 2)] * 3),
)
def test_strided_and_inverse(
    seed, shape, batch, count, channels, kernel, stride, padding, dilation
):
    cin, cout = channels
    rng, sites, features, weight = make(seed, shape, batch, count, cin, cout, kernel)
    geometry = (kernel, stride, padding, dilation)
    if any(
        n + 2 * p < d * (k - 1) + 1
        for n, k, p, d in zip(shape, kernel, padding, dilation, strict=True)
    ):
        with pytest.raises(InvalidInputError, match="larger than the grid"):
            sparse.strided_rulebook(sites, shape, batch, *geometry)
        return
    book = sparse.strided_rulebook(sites, shape, batch, *geometry)
    dense, hit = dense_convolution(features, sites, shape, batch, weight, stride, padding, dilation)
    assert book.out_shape == dense.shape[1:4]
    np.testing.assert_array_equal(book.out_indices, np.argwhere(hit))
    out = sparse.convolution(features, weight, book)
    np.testing.assert_allclose(out, dense[hit], rtol=0, atol=1e-12)

    # Inverse: <inverse(g), x> = <g, conv(x)> for weights with swapped channels.
    grad = rng.standard_normal(out.shape)
    swapped = np.ascontiguousarray(weight.transpose(4, 1, 2, 3, 0))
    back = sparse.convolution(grad, swapped, book, inverse=True)
    assert back.shape == features.shape
    np.testing.assert_allclose((back * features).sum(), (grad * out).sum(), atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(*[st.integers(1, 8)] * 3),
    batch=st.integers(1, 2),
    count=st.integers(0, 150),
    kernel=st.tuples(*[st.sampled_from((1, 3, 5))] * 3),
    dilation=st.tuples(*[st.integers(1, 2)] * 3),
)
def test_submanifold(seed, shape, batch, count, kernel, dilation):
    rng, sites, features, weight = make(seed, shape, batch, count, 7, 9, kernel)
    book = sparse.submanifold_rulebook(sites, shape, batch, kernel, dilation)
    padding = tuple(k // 2 * d for k, d in zip(kernel, dilation, strict=True))
    dense, _ = dense_convolution(
        features, sites, shape, batch, weight, (1, 1, 1), padding, dilation
    )
    bias = rng.standard_normal(9)
    out = sparse.convolution(features, weight, book, bias, activation="relu")
    expected = np.maximum(dense[tuple(sites.T)] + bias, 0)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("inverse", [False, True])
def test_weight_gradient(inverse):
    rng, sites, features, weight = make(3, (6, 7, 8), 2, 200, 5, 18, (3, 3, 3))
    book = sparse.strided_rulebook(sites, (6, 7, 8), 2, 3, 2, 1)
    if inverse:
        features = rng.standard_normal((len(book.out_indices), 5))
    out = sparse.convolution(features, weight, book, inverse=inverse)
    grad = rng.standard_normal(out.shape)
    step = rng.standard_normal(weight.shape)
    moved = sparse.convolution(features, step, book, inverse=inverse)
    slope = sparse.weight_gradient(features, grad, book, inverse=inverse).ravel() @ step.ravel()
    np.testing.assert_allclose(slope, (grad * moved).sum(), rtol=1e-12)
    # The gradient of the features is a convolution with transposed weights, the other way round.
    back = sparse.convolution(
        grad, sparse.PackedWeights(weight, transposed=True), book, inverse=not inverse
    )
    np.testing.assert_allclose((back * features).sum(), (grad * out).sum(), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_same_bits_for_any_number_of_threads(dtype):
    _, sites, features, weight = make(5, (12, 40, 40), 1, 5000, 16, 32, (3, 3, 3))
    results = []
    for threads in (1, 2, 5):
        book = sparse.submanifold_rulebook(sites, (12, 40, 40), 1, threads=threads)
        weights = weight.astype(np.float64 if dtype == np.float64 else np.float32)
        results.append(sparse.convolution(features.astype(dtype), weights, book, threads=threads))
        assert results[-1].dtype == dtype
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_row_order_of_the_input_does_not_matter():
    rng, sites, features, weight = make(6, (9, 10, 11), 2, 400, 6, 8, (3, 3, 3))
    order = rng.permutation(len(sites))
    one = sparse.strided_rulebook(sites, (9, 10, 11), 2, 3, 2, 1)
    two = sparse.strided_rulebook(sites[order], (9, 10, 11), 2, 3, 2, 1)
    np.testing.assert_array_equal(one.out_indices, two.out_indices)
    np.testing.assert_array_equal(
        sparse.convolution(features, weight, one),
        sparse.convolution(features[order], weight, two),
    )


def test_half_storage_rounds_once():
    _, sites, features, weight = make(7, (8, 8, 8), 1, 200, 16, 24, (3, 3, 3))
    book = sparse.submanifold_rulebook(sites, (8, 8, 8))
    half = features.astype(np.float16)
    weights = weight.astype(np.float16)
    out = sparse.convolution(half, weights, book)
    full = sparse.convolution(half.astype(np.float32), weights, book)
    assert out.dtype == np.float16 and full.dtype == np.float32
    np.testing.assert_array_equal(out, full.astype(np.float16))


def quantise(x, amax):
    return np.clip(np.rint(x * (127.0 / amax)), -127, 127)


@pytest.mark.parametrize("cin", [1, 5, 16, 33])
def test_int8_sums_are_exact(cin):
    rng, sites, _, _ = make(8, (8, 9, 10), 1, 300, cin, 20, (3, 3, 3))
    book = sparse.submanifold_rulebook(sites, (8, 9, 10))
    codes = rng.integers(-127, 128, (len(sites), cin)).astype(np.int8)
    weight = rng.integers(-127, 128, (20, 3, 3, 3, cin)).astype(np.int8)
    # Ranges of 127 make every scale 1, so the float32 output shows the integer sums.
    packed = sparse.PackedWeights(weight, np.full(20, 127.0))
    out = sparse.convolution(codes, packed, book, input_range=127.0)
    dense, _ = dense_convolution(
        codes.astype(np.int64), sites, (8, 9, 10), 1, weight.astype(np.int64),
        (1, 1, 1), (1, 1, 1), (1, 1, 1),
    )  # fmt: skip
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, dense[tuple(sites.T)].astype(np.float32))


@pytest.mark.parametrize("stored", [np.float16, np.int8])
def test_int8_layer_with_residual(stored):
    rng, sites, features, weight = make(9, (8, 9, 10), 1, 300, 16, 12, (3, 3, 3))
    book = sparse.submanifold_rulebook(sites, (8, 9, 10))
    amax_in, amax_out, amax_sum, amax_res = 2.5, 9.0, 11.0, 3.0
    channel = np.abs(weight).max((1, 2, 3, 4)).astype(np.float32)
    codes = quantise(weight, channel[:, None, None, None, None]).astype(np.int8)
    bias = rng.standard_normal(12).astype(np.float32)
    residual = rng.standard_normal((len(sites), 12)).astype(np.float16)
    x = features.astype(np.float16)
    given = quantise(x.astype(float), amax_in).astype(np.int8) if stored == np.int8 else x
    out = sparse.convolution(
        given, sparse.PackedWeights(codes, channel), book, bias, activation="relu",
        input_range=amax_in, residual=residual, add_ranges=(amax_sum, amax_res),
        output_dtype=np.int8, output_range=amax_out,
    )  # fmt: skip
    dense, _ = dense_convolution(
        quantise(x.astype(np.float64), amax_in), sites, (8, 9, 10), 1, codes.astype(np.float64),
        (1, 1, 1), (1, 1, 1), (1, 1, 1),
    )  # fmt: skip
    y = dense[tuple(sites.T)] * (amax_in / 127) * (channel / 127) + bias
    y = quantise(y, amax_sum) * amax_sum / 127
    y = np.maximum(y + quantise(residual.astype(np.float64), amax_res) * amax_res / 127, 0)
    difference = np.abs(out.astype(int) - quantise(y, amax_out))
    # A code may flip where float32 and float64 fall on different sides of a half.
    assert difference.max() <= 2 and (difference > 0).mean() < 2e-3


def test_activations_and_add():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 3000)).reshape(2, 500, 6)
    a32, b16 = a.astype(np.float32), b.astype(np.float16)
    total = a32 + b16.astype(np.float32)
    np.testing.assert_allclose(sparse.add(a32, b16), total, rtol=1e-6)
    leaky = sparse.add(a32, b16, activation="leaky_relu", slope=0.2)
    np.testing.assert_allclose(leaky, np.where(total < 0, total * 0.2, total), rtol=1e-6)
    sigmoid = sparse.add(a32, activation="sigmoid", output_dtype=np.float16)
    np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-a32)), atol=1e-3)
    codes = sparse.add(a32, output_dtype=np.int8, output_range=3.0)
    np.testing.assert_array_equal(codes, quantise(a32, np.float32(3.0)))
    back = sparse.add(codes, features_range=3.0, output_dtype=np.float32)
    np.testing.assert_allclose(back, codes * (3.0 / 127), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int8, np.float16, np.float32, np.float64])
def test_scatter_dense(dtype):
    rng = np.random.default_rng(1)
    sites = random_sites(rng, (3, 5, 4), 2, 30)
    features = rng.integers(1, 100, (30, 6)).astype(dtype)
    grid = to_grid(features, sites, (3, 5, 4), 2)
    zyx = sparse.scatter_dense(features, sites, (3, 5, 4), 2)
    np.testing.assert_array_equal(zyx, grid.transpose(0, 4, 1, 2, 3).reshape(2, 18, 5, 4))
    xyz = sparse.scatter_dense(features, sites, (3, 5, 4), 2, axis_order=(2, 0, 1))
    np.testing.assert_array_equal(xyz, grid.transpose(0, 4, 3, 1, 2).reshape(2, 24, 3, 5))


def test_empty_and_single():
    empty = np.zeros((0, 4), np.int32)
    book = sparse.strided_rulebook(empty, (5, 5, 5), 1, 3, 2, 1)
    out = sparse.convolution(
        np.zeros((0, 3), np.float32), np.ones((2, 3, 3, 3, 3)).astype("f4"), book
    )
    assert out.shape == (0, 2)
    assert not sparse.scatter_dense(out, book.out_indices, book.out_shape).any()
    one = np.array([[0, 4, 4, 4]], np.int32)
    book = sparse.submanifold_rulebook(one, (5, 5, 5))
    assert book.pairs().sum() == 1 and book.table[13, 0] == 0
