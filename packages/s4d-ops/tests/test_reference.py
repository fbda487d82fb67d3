"""The plain PyTorch op and the test oracle, against recorded results and each other."""

from __future__ import annotations

import numpy as np
import pytest
from cases import CASES, GOLDEN, backward, error, forward, golden_case

torch = pytest.importorskip("torch", reason="the reference needs torch")

from s4d_ops import InvalidInputError  # noqa: E402
from s4d_ops.reference import deformable_aggregation  # noqa: E402

needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason="no shared golden data")


def run(case, dtype=torch.float64):
    features, shapes, starts, locations, weights = (torch.from_numpy(v) for v in case.inputs)
    leaves = [v.to(dtype).requires_grad_() for v in (features, locations, weights)]
    out = deformable_aggregation(leaves[0], shapes, starts, leaves[1], leaves[2])
    grads = torch.autograd.grad(out, leaves, torch.from_numpy(case.grad_output).to(dtype))
    return out.detach().numpy(), [g.numpy() for g in grads]


@needs_golden
@pytest.mark.parametrize("variant", ["A", "B", "C"])
def test_oracle_and_reference_equal_the_golden_loop(variant):
    case, expected = golden_case(variant)
    names = ("grad_feat", "grad_loc", "grad_weights")
    assert error(forward(case), expected["out"]) <= 1e-14
    out, grads = run(case)
    assert error(out, expected["out"]) <= 1e-12
    for name, ours, reference in zip(names, backward(case), grads, strict=True):
        assert error(ours, expected[name]) <= 1e-13
        assert error(reference, expected[name]) <= 1e-11


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("model_like", "model_width")])
def test_table(name):
    case = CASES[name]
    out, grads = run(case)
    assert error(out, forward(case)) <= 1e-12
    for ours, expected in zip(grads, backward(case), strict=True):
        assert error(ours, expected) <= 1e-10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_summed_in_float32(dtype):
    case = CASES["small"]
    features, shapes, starts, locations, weights = (torch.from_numpy(v) for v in case.inputs)
    out = deformable_aggregation(features.to(dtype), shapes, starts, locations, weights)
    assert out.dtype == dtype
    exact = run(case)[0]
    assert error(out.float().numpy(), exact) <= (2e-3 if dtype == torch.float16 else 1e-2)


def test_lists_of_ints_serve_as_level_tables():
    case = CASES["unequal_views"]
    features, _, _, locations, weights = (torch.from_numpy(v) for v in case.inputs)
    out = deformable_aggregation(
        features,
        case.spatial_shapes.tolist(),
        case.level_start_index.tolist(),
        locations,
        weights,
    )
    assert error(out.numpy(), forward(case)) <= 1e-6


def test_features_outside_are_never_read():
    """A NaN that no sample touches stays where it is."""
    case = CASES["nothing_visible"]
    features, shapes, starts, locations, weights = (torch.from_numpy(v) for v in case.inputs)
    out = deformable_aggregation(
        torch.full_like(features, float("nan")), shapes, starts, locations, weights
    )
    assert torch.equal(out, torch.zeros_like(out))


def test_export_as_standard_operators():
    case = CASES["small"]
    shapes, starts = case.spatial_shapes.tolist(), case.level_start_index.tolist()

    class Module(torch.nn.Module):
        def forward(self, features, locations, weights):
            return deformable_aggregation(features, shapes, starts, locations, weights)

    values = tuple(torch.from_numpy(v) for v in (case.features, case.locations, case.weights))
    program = torch.export.export(Module(), values)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.grid_sampler.default" in targets
    assert all(target.startswith("aten.") for target in targets)
    assert error(program.module()(*values).numpy(), forward(case)) <= 1e-6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.__setitem__(0, v[0][0]), "features"),
        (lambda v: v.__setitem__(3, v[3][:, :, :, :1]), "sampling_locations"),
        (lambda v: v.__setitem__(4, v[4][..., :0]), "groups"),
        (lambda v: v.__setitem__(2, v[2] + 1), "does not lie inside"),
        (lambda v: v.__setitem__(1, v[1][:0]), "at least one"),
    ],
)
def test_wrong_shapes_are_named(change, words):
    values = [torch.from_numpy(np.array(v)) for v in CASES["small"].inputs]
    change(values)
    with pytest.raises(InvalidInputError, match=words):
        deformable_aggregation(*values)
