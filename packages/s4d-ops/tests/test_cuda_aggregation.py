"""CUDA kernels of deformable aggregation against double precision."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

from cuda_cases import CASES, TOLERANCE, Case, make_inputs, relative, truth  # noqa: E402

from s4d_ops.torch import deformable_aggregation  # noqa: E402

HALVES = (torch.float16, torch.bfloat16)
MODEL = CASES[0]


def backward(inputs, grad, deterministic=False, needs=(True, True, True)):
    return torch.ops.s4d.deformable_aggregation_backward(grad, *inputs, *needs, deterministic)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_forward(case: Case, dtype: torch.dtype) -> None:
    inputs = make_inputs(case, dtype)
    # Memory that the output will reuse is poisoned: an unwritten element would show.
    poison = inputs[0].new_full((case.batch, case.anchors, case.channels), float("nan"))
    del poison
    output = deformable_aggregation(*inputs)
    assert output.dtype == dtype
    assert relative(output, truth(inputs)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("deterministic", (False, True), ids=("atomics", "fixed point"))
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_backward(case: Case, dtype: torch.dtype, deterministic: bool) -> None:
    inputs = make_inputs(case, dtype)
    grad = torch.randn(case.batch, case.anchors, case.channels, device="cuda").to(dtype)
    expected = truth(inputs, grad)[1]
    found = backward(inputs, grad, deterministic)
    for name, value, want in zip(
        ("features", "locations", "weights"), found, expected, strict=True
    ):
        if dtype == torch.float64 and deterministic and name == "features":
            limit = 1e-9  # the step of the fixed-point sums
        elif dtype == torch.float64:
            limit = TOLERANCE[dtype]
        else:
            # The gradient of a location is in fp32 where the features are not, and sums products
            # that partly cancel.
            limit = max(TOLERANCE[value.dtype], 5e-6)
        assert relative(value, want) <= limit, name


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("weight_dtype", (torch.float32, *HALVES), ids=str)
@pytest.mark.parametrize("location_dtype", (torch.float32, *HALVES), ids=str)
def test_mixed_types(dtype, location_dtype, weight_dtype) -> None:
    inputs = make_inputs(MODEL, dtype, location_dtype, weight_dtype, index_dtype=torch.int64)
    output = deformable_aggregation(*inputs)
    assert relative(output, truth(inputs)) <= TOLERANCE[dtype]
    grad = torch.randn_like(output)
    found = backward(inputs, grad)
    expected = truth(inputs, grad)[1]
    for value, want, source in zip(found, expected, (inputs[0], *inputs[3:]), strict=True):
        assert value.dtype == source.dtype
        assert relative(value, want) <= max(TOLERANCE[value.dtype], 5e-6)


def test_unaligned_and_strided_inputs() -> None:
    inputs = list(make_inputs(MODEL))
    storage = torch.empty(inputs[0].numel() + 1, device="cuda")
    shifted = storage[1:].view(inputs[0].shape).copy_(inputs[0])  # 4 bytes off: general kernel
    expected = truth(tuple(inputs))
    assert relative(deformable_aggregation(shifted, *inputs[1:]), expected) <= 1e-6
    strided = inputs[0].transpose(1, 2).contiguous().transpose(1, 2)
    assert relative(deformable_aggregation(strided, *inputs[1:]), expected) <= 1e-6


def test_points_outside_do_not_read_features_or_weights() -> None:
    inputs = list(make_inputs(CASES[18]))  # nothing visible
    inputs[0].fill_(float("nan"))
    inputs[4].fill_(float("inf"))
    assert not deformable_aggregation(*inputs).any()
    grad = torch.randn_like(deformable_aggregation(*inputs))
    assert all(not gradient.any() for gradient in backward(inputs, grad))


def test_levels_outside_the_rows_contribute_nothing() -> None:
    inputs = list(make_inputs(MODEL))
    without = [value.clone() for value in inputs]
    without[4][..., 3, :] = 0
    inputs[2][:, 3] = inputs[0].shape[1]
    assert torch.equal(deformable_aggregation(*inputs), deformable_aggregation(*without))
    inputs[1][:, 3] = -5
    assert torch.equal(deformable_aggregation(*inputs), deformable_aggregation(*without))


def test_forward_is_bit_equal_over_100_runs() -> None:
    inputs = make_inputs(Case("", batch=1, anchors=300))
    first = deformable_aggregation(*inputs)
    for _ in range(100):
        assert torch.equal(deformable_aggregation(*inputs), first)


def test_forward_is_bit_equal_on_two_streams_at_once() -> None:
    inputs = make_inputs(Case("", batch=1, anchors=900))
    first = deformable_aggregation(*inputs)
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    results = []
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(deformable_aggregation(*inputs))
    torch.cuda.synchronize()
    assert all(torch.equal(result, first) for result in results)


@pytest.mark.parametrize("channels", (256, 21), ids=("vector", "general"))
def test_deterministic_backward_is_bit_equal(channels: int) -> None:
    case = Case(
        "", batch=1, anchors=300, channels=channels, groups=channels // 7 if channels == 21 else 8
    )
    inputs = make_inputs(case)
    grad = torch.randn(1, 300, channels, device="cuda")
    first = backward(inputs, grad, True)
    for _ in range(20):
        assert all(map(torch.equal, backward(inputs, grad, True), first))


def test_deterministic_backward_of_non_finite_gradients() -> None:
    inputs = make_inputs(MODEL)
    grad = torch.randn(2, 37, 256, device="cuda")
    grad[0, 0, 0] = float("inf")
    assert backward(inputs, grad, True)[0].isnan().all()
    tiny = backward(inputs, torch.full_like(grad, 1e-25), True)[0]
    assert relative(tiny, backward(inputs, torch.full_like(grad, 1e-25))[0]) < 1e-4


def test_only_wanted_gradients() -> None:
    inputs = make_inputs(MODEL)
    grad = torch.randn(2, 37, 256, device="cuda")
    every = backward(inputs, grad)
    for i in range(3):
        needs = [k == i for k in range(3)]
        found = backward(inputs, grad, needs=needs)
        assert relative(found[i], every[i]) < 1e-6
        assert all(found[k].numel() == 0 for k in range(3) if k != i)


def test_more_than_2_to_31_work_items() -> None:
    """Batch 31 of the training shape: 31 * 1220 * 13 * 6 * 4 * 256 = 3.0e9 contributions."""
    maps = (((64, 176), (32, 88), (16, 44), (8, 22)),) * 6
    case = Case("", batch=31, anchors=1220, maps=maps, visible=0.2)
    inputs = make_inputs(case)
    assert inputs[4].numel() * 32 > 2**31
    grad = torch.randn(31, 1220, 256, device="cuda")
    output = deformable_aggregation(*inputs)
    gradients = backward(inputs, grad)
    for sample in (0, 30):
        one = [v if v.dtype == torch.int32 else v[sample : sample + 1] for v in inputs]
        expected, wanted = truth(tuple(one), grad[sample : sample + 1])
        assert relative(output[sample : sample + 1], expected) <= 1e-6
        for value, want in zip(gradients, wanted, strict=True):
            assert relative(value[sample : sample + 1], want) <= 5e-6


def test_a_sample_beyond_2_to_32_elements() -> None:
    """Rows whose element offset inside one sample passes 2^32: 17 GB of features."""
    height, width = 4200, 4200
    case = Case("", batch=1, anchors=40, maps=(((height, width),),), visible=1.0, spread=0.01)
    if torch.cuda.mem_get_info()[0] < 60e9:
        pytest.skip("needs 60 GB of free device memory")
    inputs = list(make_inputs(Case("", batch=1, anchors=40, maps=(((4, 4),),), visible=1.0)))
    del case
    inputs[0] = torch.randn(1, height * width, 256, device="cuda", dtype=torch.float16)
    inputs[1][:] = torch.tensor([height, width])
    output = deformable_aggregation(*inputs)
    inside = ((inputs[3] > 0) & (inputs[3] < 1)).all(-1)
    # The truth from the few rows that are read.
    position = inputs[3].double()[..., 0, :] * torch.tensor([width, height], device="cuda") - 0.5
    base = position.nan_to_num(0, 0, 0).clamp(-1, 5000).floor().long()
    share = (position - base).nan_to_num(0, 0, 0)
    expected = torch.zeros(1, 40, 256, device="cuda", dtype=torch.float64)
    for k in range(4):
        x, y = base[..., 0] + k % 2, base[..., 1] + k // 2
        fine = inside[..., 0] & (x >= 0) & (y >= 0) & (x < width) & (y < height)
        row = (y * width + x).clamp(0, height * width - 1)
        factor = (share[..., 0] if k % 2 else 1 - share[..., 0]) * (
            share[..., 1] if k // 2 else 1 - share[..., 1]
        )
        weight = inputs[4].double()[..., 0, 0, :].repeat_interleave(32, -1)
        value = inputs[0][0, row].double() * (factor * fine).unsqueeze(-1) * weight
        expected += torch.where(fine.unsqueeze(-1), value, 0.0).sum(2)
    assert relative(output, expected) <= 2e-3
