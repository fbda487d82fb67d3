"""CUDA side of the sparse torch functions, against the CPU side and double precision."""

from __future__ import annotations

import numpy as np
import pytest
from sparse_cases import random_sites

from s4d_ops import InvalidInputError

torch = pytest.importorskip("torch", reason="torch is an optional extra of s4d-ops")
from s4d_ops import sparse_torch  # noqa: E402

pytestmark = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
ONES = (1, 1, 1)
# name, grid, batch, rows, in, out, kernel, stride, padding, dilation
CASES = [
    ("model", (21, 40, 41), 2, 4000, 16, 32, (3, 3, 3), (2, 2, 2), ONES, ONES),
    ("input", (21, 40, 41), 1, 3000, 5, 16, (3, 3, 3), ONES, ONES, ONES),
    ("last", (5, 33, 35), 2, 2500, 128, 128, (3, 1, 1), (2, 1, 1), (0, 0, 0), ONES),
    ("uneven padding", (11, 30, 31), 1, 1500, 64, 128, (3, 3, 3), (2, 2, 2), (0, 1, 1), ONES),
    ("dilated", (12, 20, 20), 2, 2000, 24, 40, (3, 3, 3), ONES, (2, 2, 2), (2, 2, 2)),
    ("flat kernel", (9, 30, 70), 1, 2000, 7, 3, (1, 3, 5), (1, 2, 1), (0, 1, 2), (1, 1, 2)),
    ("wide", (6, 12, 12), 1, 500, 160, 200, (3, 3, 3), ONES, ONES, ONES),
    ("one channel", (6, 12, 12), 1, 300, 1, 1, (3, 3, 3), (2, 2, 2), ONES, ONES),
    ("even kernel", (8, 16, 16), 1, 700, 32, 16, (2, 2, 2), (2, 2, 2), (0, 0, 0), ONES),
    ("full grid", (6, 9, 10), 2, 1080, 16, 16, (3, 3, 3), ONES, ONES, ONES),
    ("one voxel", (41, 1440, 1440), 1, 1, 16, 16, (3, 3, 3), (2, 2, 2), ONES, ONES),
    ("no voxel", (12, 20, 20), 2, 0, 16, 32, (3, 3, 3), (2, 2, 2), ONES, ONES),
]
LIMITS = {torch.float32: 2e-6, torch.float16: 2e-3}


def relative(value, expected):
    error = (value.double().cpu() - expected.double().cpu()).norm().item()
    scale = expected.double().norm().item()
    return error / scale if scale else error


def case_inputs(case, submanifold, seed=None):
    """Fresh random inputs in double precision, on the CPU."""
    _, shape, batch, count, cin, cout, kernel, stride, padding, dilation = case
    rng = np.random.default_rng(seed)
    cells = batch * int(np.prod(shape))
    sites = (
        torch.from_numpy(random_sites(rng, shape, batch, count))
        if cells < 10**7
        else torch.tensor([[0, *(int(rng.integers(n)) for n in shape)]], dtype=torch.int32)
    )
    features = torch.from_numpy(rng.standard_normal((len(sites), cin)))
    scale = 1 / np.sqrt(cin * np.prod(kernel))
    weight = torch.from_numpy(rng.standard_normal((cout, *kernel, cin)) * scale)
    bias = torch.from_numpy(rng.standard_normal(cout))
    if submanifold:
        arguments = (shape, batch, kernel, dilation)
        return sites, features, weight, bias, sparse_torch.submanifold_rulebook, arguments
    arguments = (shape, batch, kernel, stride, padding, dilation)
    return sites, features, weight, bias, sparse_torch.strided_rulebook, arguments


def kinds():
    for case in CASES:
        yield pytest.param(case, False, id=case[0])
        if all(k % 2 for k in case[6]):
            yield pytest.param(case, True, id=f"{case[0]} submanifold")


@needs_cuda
@pytest.mark.parametrize(("case", "submanifold"), list(kinds()))
def test_rulebooks_equal_those_of_the_cpu(case, submanifold):
    sites, _, _, _, build, arguments = case_inputs(case, submanifold)
    host, device = build(sites, *arguments), build(sites.cuda(), *arguments)
    assert device.out_shape == host.out_shape and device.in_rows == host.in_rows
    assert torch.equal(device.out_indices.cpu(), host.out_indices)
    assert torch.equal(device.table.cpu(), host.table)
    assert torch.equal(device.inverse_table().cpu(), host.inverse_table())


@needs_cuda
@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("case", "submanifold"), list(kinds()))
def test_convolution_and_gradients(case, submanifold, inverse, dtype):
    """Against double precision on the very values that the device sees."""
    sites, features, weight, bias, build, arguments = case_inputs(case, submanifold)
    host, device = build(sites, *arguments), build(sites.cuda(), *arguments)
    if inverse:
        features = torch.randn(len(host.out_indices), weight.shape[-1], dtype=torch.float64)
    features, weight = features.to(dtype), weight.to(dtype)
    values = [features.double(), weight.double(), bias.float().double()]
    wide = [v.requires_grad_() for v in values]
    want = sparse_torch.convolution(*wide[:2], host, wide[2], inverse)
    given = [features.cuda(), weight.float().cuda(), bias.float().cuda()]
    given = [v.requires_grad_() for v in given]
    got = sparse_torch.convolution(*given[:2], device, given[2], inverse)
    assert got.dtype == dtype and got.shape == want.shape
    assert relative(got, want) <= LIMITS[dtype]
    grad = torch.randn(want.shape).to(dtype)
    expected = torch.autograd.grad(want, wide, grad.double())
    found = torch.autograd.grad(got, given, grad.cuda())
    for value, wanted, source in zip(found, expected, given, strict=True):
        assert value.dtype == source.dtype
        assert relative(value, wanted) <= LIMITS[dtype]
    again = sparse_torch.convolution(*given[:2], device, given[2], inverse)
    assert torch.equal(got, again)
    for value, other in zip(found, torch.autograd.grad(again, given, grad.cuda()), strict=True):
        assert torch.equal(value, other)


@needs_cuda
def test_large_sums_of_half_gradients_do_not_overflow():
    """The gradient of a float32 weight from half features is summed and returned in float32."""
    sites = torch.from_numpy(random_sites(np.random.default_rng(0), (20, 60, 60), 1, 50000)).cuda()
    book = sparse_torch.submanifold_rulebook(sites, (20, 60, 60), 1, (3, 3, 3), ONES)
    features = torch.full((50000, 16), 4.0, dtype=torch.float16, device="cuda")
    weight = torch.zeros(16, 3, 3, 3, 16, device="cuda", requires_grad=True)
    out = sparse_torch.convolution(features, weight, book)
    (gradient,) = torch.autograd.grad(out, weight, torch.ones_like(out))
    assert gradient[0, 1, 1, 1, 0].item() == 200000.0


@needs_cuda
@pytest.mark.parametrize(("case", "submanifold"), list(kinds()))
def test_int8_sums_are_exact(case, submanifold):
    sites, features, weight, _, build, arguments = case_inputs(case, submanifold)
    host, device = build(sites, *arguments), build(sites.cuda(), *arguments)
    codes = torch.randint(-127, 128, features.shape, dtype=torch.int8)
    weights = torch.randint(-127, 128, weight.shape, dtype=torch.int8)
    scale = torch.rand(len(weight)) + 0.1
    bias = torch.randn(len(weight))
    for values in ((torch.ones_like(scale), None), (scale, bias)):
        want = sparse_torch.convolution_int8(codes, weights, values[0], host, values[1])
        got = sparse_torch.convolution_int8(
            codes.cuda(), weights.cuda(), values[0].cuda(), device,
            None if values[1] is None else values[1].cuda(),
        )  # fmt: skip
        if values[1] is None:
            assert torch.equal(got.cpu(), want)
        torch.testing.assert_close(got.cpu(), want, rtol=1e-6, atol=1e-3)


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_dense_maps(dtype, order):
    for channels, count in ((5, 900), (128, 2000), (16, 1), (16, 0)):
        rng = np.random.default_rng()
        sites = torch.from_numpy(random_sites(rng, (5, 40, 41), 2, count))
        features = torch.randn(len(sites), channels).to(dtype)
        want = sparse_torch.to_dense(features.float(), sites, (5, 40, 41), 2, order)
        x = features.cuda().requires_grad_()
        got = sparse_torch.to_dense(x, sites.cuda(), (5, 40, 41), 2, order)
        assert got.dtype == dtype and torch.equal(got.float().cpu(), want)
        grad = torch.randn(want.shape).to(dtype)
        (found,) = torch.autograd.grad(got, x, grad.cuda())
        places = [1 + order.index(axis) for axis in range(3)]
        moved = grad.permute(0, *(p + 1 for p in places), 1)
        b, i, j, k = sites.long().unbind(1)
        assert torch.equal(found.cpu(), moved[b, i, j, k])


@needs_cuda
@pytest.mark.parametrize("limits", [(10, 0), (3, 500), (1, 1)])
def test_voxels_equal_those_of_the_cpu(limits):
    for count in (20000, 1, 0):
        points = torch.rand(count, 5) * 12 - 1
        if count > 100:
            points[7, 0] = float("nan")
            points[8, 1] = float("inf")
        rules = ((0, 0, 0), (10, 10, 10), (0.3, 0.3, 1), (33, 33, 10), *limits)
        want = sparse_torch.voxelize(points, *rules)
        got = sparse_torch.voxelize(points.cuda(), *rules)
        for name in ("cells", "features", "kept", "total"):
            assert torch.equal(getattr(got, name).cpu(), getattr(want, name)), name
        for name in ("refused_voxels", "refused_points", "outside_points"):
            assert getattr(got, name) == getattr(want, name)


@needs_cuda
def test_bad_input_is_named():
    sites = torch.from_numpy(random_sites(np.random.default_rng(0), (6, 7, 8), 2, 90)).cuda()
    with pytest.raises(InvalidInputError, match="both"):
        sparse_torch.submanifold_rulebook(sites[[0, 0]], (6, 7, 8), 2, (3, 3, 3), ONES)
    with pytest.raises(InvalidInputError, match="outside"):
        sparse_torch.submanifold_rulebook(sites, (6, 7, 3), 2, (3, 3, 3), ONES)
    with pytest.raises(InvalidInputError, match="odd"):
        sparse_torch.submanifold_rulebook(sites, (6, 7, 8), 2, (2, 3, 3), ONES)
    with pytest.raises(InvalidInputError, match="outside"):
        sparse_torch.to_dense(torch.randn(90, 3, device="cuda"), sites, (6, 7, 3), 2)
    book = sparse_torch.submanifold_rulebook(sites, (6, 7, 8), 2, (3, 3, 3), ONES)
    weight = torch.randn(4, 3, 3, 3, 5, device="cuda")
    with pytest.raises(InvalidInputError, match="channels"):
        sparse_torch.convolution(torch.randn(90, 3, device="cuda"), weight, book)
    with pytest.raises(InvalidInputError, match="entries"):
        sparse_torch.convolution(torch.randn(9, 5, device="cuda"), weight, book)
    with pytest.raises(InvalidInputError, match="one device"):
        sparse_torch.convolution(torch.randn(90, 5), weight, book)
    with pytest.raises(InvalidInputError, match="finite low"):
        sparse_torch.voxelize(torch.rand(9, 3).cuda(), (0, 0, 0), (1, 1, 1), (0, 1, 1), (1, 1, 1))
    out = sparse_torch.convolution(torch.randn(90, 5, device="cuda"), weight, book)
    assert torch.isfinite(out).all()


@needs_cuda
def test_other_types_use_composites():
    case = CASES[0]
    sites, features, weight, bias, build, arguments = case_inputs(case, False)
    host, device = build(sites, *arguments), build(sites.cuda(), *arguments)
    want = sparse_torch.convolution(features, weight, host, bias)
    got = sparse_torch.convolution(features.cuda(), weight.cuda(), device, bias.cuda())
    assert got.dtype == torch.float64 and relative(got, want) <= 1e-13
    half = sparse_torch.convolution(features.bfloat16().cuda(), weight.float().cuda(), device)
    assert half.dtype == torch.bfloat16


@needs_cuda
def test_on_a_stream_of_the_caller():
    case = CASES[0]
    sites, features, weight, _, build, arguments = case_inputs(case, False)
    want = sparse_torch.convolution(features, weight, build(sites, *arguments))
    stream = torch.cuda.Stream()
    x = features.float().pin_memory()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        book = build(sites.cuda(non_blocking=True), *arguments)
        got = sparse_torch.convolution(
            x.cuda(non_blocking=True), weight.float().cuda(non_blocking=True), book
        )
    stream.synchronize()
    assert relative(got, want) <= 2e-6
