"""The torch door on the CPU under autograd, torch.compile, torch.export and autocast."""

from __future__ import annotations

import numpy as np
import pytest
from cases import CASES, random_case

torch = pytest.importorskip("torch", reason="the torch door needs torch")

from torch_door import door, run, tensors  # noqa: E402


def test_only_wanted_gradients():
    case = CASES["small"]
    values = tensors(case)
    full = run(values, case.grad_output)[1]
    for wanted in range(3):
        leaves = [values[i].clone().requires_grad_(k == wanted) for k, i in enumerate((0, 3, 4))]
        out = door.deformable_aggregation(leaves[0], *values[1:3], leaves[1], leaves[2])
        out.backward(torch.from_numpy(case.grad_output))
        assert torch.equal(leaves[wanted].grad, full[wanted])


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
