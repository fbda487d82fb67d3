"""The torch door on the CPU: values, gradients, types, tracing, errors."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from cases import (
    CASES,
    GOLDEN,
    Case,
    backward,
    error,
    forward,
    golden_case,
    random_case,
)
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the torch door needs torch")

from s4d_ops import InvalidInputError, MissingLibraryError, library_path  # noqa: E402

try:
    from s4d_ops import torch as door
except MissingLibraryError as missing:
    pytest.skip(f"torch door not built: {missing}", allow_module_level=True)

needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason="no shared golden data")
TOLERANCE = {
    torch.float64: (1e-12, 1e-11),
    torch.float32: (1e-6, 1e-5),
    torch.float16: (2e-3, 4e-3),
    torch.bfloat16: (1e-2, 2e-2),
}


def tensors(case: Case, dtype=torch.float32):
    """The five inputs; float64 for all, or the type for features and float32 for the others."""
    rest = torch.float64 if dtype == torch.float64 else torch.float32
    features, shapes, starts, locations, weights = (torch.from_numpy(v) for v in case.inputs)
    return [features.to(dtype), shapes, starts, locations.to(rest), weights.to(rest)]


def rounded(case: Case, dtype) -> Case:
    """What the kernel sees: features and the output's gradient rounded to the type."""
    import dataclasses

    def through(value):
        return torch.from_numpy(value).to(dtype).double().numpy()

    return dataclasses.replace(
        case, features=through(case.features), grad_output=through(case.grad_output)
    )


def run(values, grad_output):
    leaves = [values[i].detach().clone().requires_grad_() for i in (0, 3, 4)]
    out = door.deformable_aggregation(leaves[0], values[1], values[2], leaves[1], leaves[2])
    grads = torch.autograd.grad(out, leaves, torch.from_numpy(grad_output).to(out.dtype))
    return out.detach(), grads


def check(case: Case, dtype=torch.float32):
    out, grads = run(tensors(case, dtype), case.grad_output)
    assert out.dtype == dtype
    case = rounded(case, dtype)
    assert error(out.double().numpy(), forward(case)) <= TOLERANCE[dtype][0]
    for ours, expected in zip(grads, backward(case), strict=True):
        assert error(ours.double().numpy(), expected) <= TOLERANCE[dtype][1]


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


def test_only_wanted_gradients():
    case = CASES["small"]
    values = tensors(case)
    full = run(values, case.grad_output)[1]
    for wanted in range(3):
        leaves = [values[i].clone().requires_grad_(k == wanted) for k, i in enumerate((0, 3, 4))]
        out = door.deformable_aggregation(leaves[0], *values[1:3], leaves[1], leaves[2])
        out.backward(torch.from_numpy(case.grad_output))
        assert torch.equal(leaves[wanted].grad, full[wanted])


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


def test_gradcheck():
    rng = np.random.default_rng(0)
    case = random_case([[(3, 4), (2, 3)]] * 2, 1, 2, 1, 4, 2, visible=1.0, seed=21)
    values = tensors(case, torch.float64)
    # Away from pixel centres, where bilinear interpolation has a kink.
    cells = torch.from_numpy(rng.integers(1, 9, values[3].shape) + rng.uniform(0.2, 0.8)) / 12
    values[3] = cells.double() + 0.01
    leaves = [values[i].requires_grad_() for i in (0, 3, 4)]

    def call(features, locations, weights):
        return door.deformable_aggregation(features, *values[1:3], locations, weights)

    assert torch.autograd.gradcheck(call, leaves, eps=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["small", "unequal_views", "no_anchors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_opcheck(name, dtype):
    values = tensors(CASES[name], dtype)
    op = torch.ops.s4d.deformable_aggregation.default
    torch.library.opcheck(op, tuple(values))
    leaves = [v.clone().requires_grad_(v.is_floating_point()) for v in values]
    torch.library.opcheck(op, tuple(leaves))
    strided = values[0].mT.contiguous().mT
    torch.library.opcheck(op, (strided, *values[1:]))


def test_opcheck_of_the_backward_op():
    case = CASES["small"]
    op = torch.ops.s4d.deformable_aggregation_backward.default
    grad = torch.from_numpy(case.grad_output)
    for wanted in ((True, True, True), (False, True, False)):
        torch.library.opcheck(op, (grad, *tensors(case), *wanted, False))


def test_a_second_derivative_is_refused():
    values = tensors(CASES["small"], torch.float64)
    values[0].requires_grad_()
    out = door.deformable_aggregation(*values)
    (grad,) = torch.autograd.grad(out.square().sum(), values[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="only once"):
        torch.autograd.grad(grad.sum(), values[0])


def test_compile_is_one_graph():
    case = CASES["small"]
    values = tensors(case)

    def block(features, locations, weights):
        out = door.deformable_aggregation(
            features, *values[1:3], locations.sigmoid(), weights.softmax(-1)
        )
        return out * 2

    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    leaves = [values[i].clone().requires_grad_() for i in (0, 3, 4)]
    copies = [v.detach().clone().requires_grad_() for v in leaves]
    block(*leaves).sum().backward()
    compiled(*copies).sum().backward()
    for a, b in zip(leaves, copies, strict=True):
        assert torch.equal(a.grad, b.grad)


def test_export_has_one_node():
    case = CASES["small"]
    values = tensors(case)

    class Module(torch.nn.Module):
        def forward(self, *inputs):
            return door.deformable_aggregation(*inputs)

    program = torch.export.export(Module(), tuple(values))
    targets = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert targets == ["s4d.deformable_aggregation.default"]
    assert torch.equal(program.module()(*values), door.deformable_aggregation(*values))


def test_autocast_leaves_types_alone():
    values = tensors(CASES["small"], torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = door.deformable_aggregation(*values)
        assert out.dtype == torch.bfloat16
        exact = door.deformable_aggregation(*tensors(CASES["small"]))
        assert exact.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.__setitem__(0, v[0][0]), "features"),
        (lambda v: v.__setitem__(0, v[0].int()), "float"),
        (lambda v: v.__setitem__(0, v[0].double()), "float64"),
        (lambda v: v.__setitem__(1, v[1].float()), "int32"),
        (lambda v: v.__setitem__(1, v[1].int()), "both"),
        (lambda v: v.__setitem__(2, v[2][:1]), "level_start_index"),
        (lambda v: v.__setitem__(3, v[3][:, :, :, :1]), "same B, A, P, N"),
        (lambda v: v.__setitem__(4, v[4][..., :0]), "groups"),
        (lambda v: v.__setitem__(4, v[4][:, :1]), "same B, A, P, N"),
    ],
)
def test_wrong_input_is_named(change, words):
    values = tensors(CASES["small"])
    change(values)
    with pytest.raises(InvalidInputError, match=words):
        door.deformable_aggregation(*values)
    if values[0].dim() == 3:
        with pytest.raises(RuntimeError):  # the core checks on its own
            torch.ops.s4d.deformable_aggregation(*values)


@pytest.mark.parametrize("bad", [10**6, -1])
def test_level_tables_outside_the_features_are_refused(bad):
    values = tensors(CASES["small"])
    values[2] = values[2] + bad
    with pytest.raises(RuntimeError, match="does not lie inside"):
        door.deformable_aggregation(*values)
    values = tensors(CASES["small"])
    values[1] = values[1] * 2**40
    with pytest.raises(RuntimeError, match="does not lie inside"):
        door.deformable_aggregation(*values)


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


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_only_stable_symbols_of_torch():
    """The promise of one binary for all versions: only the C interface of torch is used."""
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", library_path("torch")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    names = re.findall(r" [Uw] (\S+)", listing)
    assert any(name.startswith("aoti_torch_") for name in names)
    for name in names:
        # A C++ name of torch, ATen or c10 has its namespace's length before it.
        assert not re.match(r"_Z.*(3c10|2at|5torch)", name), name
        if "torch" in name:
            assert re.match(r"(aoti_torch|torch)_\w+$", name), name
