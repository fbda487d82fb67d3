"""The torch door on the CPU: values, gradients, types, threads, instruction sets."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from cases import CASES, GOLDEN, error, golden_case, random_case
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the torch door needs torch")

from torch_door import TOLERANCE, check, door, run, tensors  # noqa: E402

needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason="no shared golden data")


@needs_golden
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", ["A", "B", "C"])
def test_golden(variant, dtype):
    case, expected = golden_case(variant)
    out, grads = run(tensors(case, dtype), case.grad_output)
    assert error(out.numpy(), expected["out"]) <= TOLERANCE[dtype][0]
    for ours, name in zip(grads, ("grad_feat", "grad_loc", "grad_weights"), strict=True):
        assert error(ours.numpy(), expected[name]) <= TOLERANCE[dtype][1]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("name", list(CASES))
def test_table(name, dtype):
    check(CASES[name], dtype)


def test_border_is_exact():
    """On 0 and 1 nothing; half a pixel inside, the border pixel with its share; exact in binary."""
    features = torch.arange(1.0, 33.0).reshape(1, 32, 1)  # one map of 4 x 8
    shapes, starts = torch.tensor([[[4, 8]]]), torch.tensor([[0]])
    below = float(np.nextafter(np.float32(1), np.float32(0)))
    points = {
        (0.0, 0.5): 0.0,
        (1.0, 0.5): 0.0,
        (0.5, 0.0): 0.0,
        (0.5, 1.0): 0.0,
        (0.0625, 0.125): 1.0,  # centre of the first pixel
        (0.03125, 0.125): 0.75,  # a quarter of a pixel further out
        (0.9375, 0.875): 32.0,  # centre of the last pixel
        (0.96875, 0.875): 24.0,
        (0.5, 0.5): 16.5,
        (below, 0.875): 32.0 * (0.5 + (1 - below) * 8),
    }
    locations = torch.tensor(list(points), dtype=torch.float32).reshape(1, -1, 1, 1, 2)
    weights = torch.ones(1, len(points), 1, 1, 1, 1)
    out = door.deformable_aggregation(features, shapes, starts, locations, weights)
    assert out.flatten().tolist() == list(points.values())


@st.composite
def cases(draw):
    side = st.integers(1, 9)
    levels = draw(st.integers(1, 3))
    views = draw(st.integers(1, 4))
    maps = st.lists(st.tuples(side, side), min_size=levels, max_size=levels)
    groups = draw(st.integers(1, 5))
    return random_case(
        draw(st.lists(maps, min_size=views, max_size=views)),
        batch=draw(st.integers(0, 2)),
        anchors=draw(st.integers(0, 4)),
        points=draw(st.integers(0, 3)),
        channels=groups * draw(st.integers(1, 40)),
        groups=groups,
        visible=draw(st.sampled_from([0.0, 0.5, 1.0])),
        seed=draw(st.integers(0, 2**31)),
    )


@settings(max_examples=50, deadline=None)
@given(cases(), st.sampled_from(list(TOLERANCE)), st.randoms(use_true_random=False))
def test_random_shapes(case, dtype, random):
    flat = case.locations.reshape(-1)
    for i in range(len(flat)):
        if random.random() < 0.1:
            flat[i] = random.choice([np.nan, np.inf, -np.inf, 0.0, 1.0, 1e30])
    check(case, dtype)


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("location", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weight", [torch.float32, torch.float16, torch.bfloat16])
def test_mixed_types(location, weight, index):
    values = tensors(CASES["small"])
    values[1:3] = [v.to(index) for v in values[1:3]]
    values[3:] = [values[3].to(location), values[4].to(weight)]
    exact = [v.double() if v.is_floating_point() else v for v in values]
    out, grads = run(values, CASES["small"].grad_output)
    expected, expected_grads = run(exact, CASES["small"].grad_output)
    assert error(out.numpy(), expected.numpy()) <= 1e-6
    for ours, theirs, leaf in zip(grads, expected_grads, (values[0], *values[3:]), strict=True):
        assert ours.dtype == leaf.dtype
        assert error(ours.double().numpy(), theirs.numpy()) <= 1e-2


def test_not_contiguous():
    values = tensors(CASES["model_like"])
    strided = [
        torch.stack([v, torch.zeros_like(v)], -1)[..., 0] if v.dim() < 5 else v.mT.contiguous().mT
        for v in values
    ]
    assert not any(v.is_contiguous() for v in strided[3:])
    grad = CASES["model_like"].grad_output
    out, grads = run(values, grad)
    out_strided, grads_strided = run(strided, grad)
    assert torch.equal(out, out_strided)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_strided, strict=True))


def test_nan_features_stay_where_they_are():
    """A NaN row outside every sample's four neighbours must not reach the result."""
    features = torch.ones(1, 16, 4)
    features[0, 15] = float("nan")
    shapes, starts = torch.tensor([[[4, 4]]]), torch.tensor([[0]])
    locations = torch.full((1, 1, 1, 1, 2), 0.05)  # neighbours left and above are outside the map
    out = door.deformable_aggregation(
        features, shapes, starts, locations, torch.ones(1, 1, 1, 1, 1, 1)
    )
    assert torch.isfinite(out).all()


def test_the_same_bits_for_any_number_of_threads():
    case = CASES["model_width"]
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            for dtype in (torch.float32, torch.float16):
                out, grads = run(tensors(case, dtype), case.grad_output)
                results.append([v.float() for v in (out, *grads)])
    finally:
        torch.set_num_threads(before)
    for other in range(2, len(results)):
        pairs = zip(results[other % 2], results[other], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("capability", ["baseline", "avx2"])
def test_every_instruction_set_of_this_machine(capability):
    """The loops that the dispatcher would not choose here, in a process of their own."""
    program = (
        "import cases, torch; from s4d_ops import torch as door\n"
        "for name in ('model_like', 'odd_channels', 'unequal_views'):\n"
        "    case = cases.CASES[name]\n"
        "    for dtype, limit in ((torch.float32, 1e-6), (torch.float16, 2e-3)):\n"
        "        values = [torch.from_numpy(v) for v in case.inputs]\n"
        "        values[0] = values[0].to(dtype)\n"
        "        out = door.deformable_aggregation(*values).float().numpy()\n"
        "        exact = cases.replace(case, features=values[0].float().numpy())\n"
        "        assert cases.error(out, cases.forward(exact)) <= limit\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "S4D_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "2"},
        cwd=os.path.dirname(__file__),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
