"""CUDA side of the torch door: autograd, compile, CUDA graphs, opcheck."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

from cuda_cases import CASES, Case, make_inputs, relative, truth  # noqa: E402

from s4d_ops.torch import deformable_aggregation  # noqa: E402

MODEL = CASES[0]
SMALL = Case("small", anchors=5, points=3, channels=32, groups=4, maps=(((5, 7), (3, 4)),) * 2)


class Block(torch.nn.Module):
    """The decoder's aggregation block in small: locations and weights come from a query."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        views, levels = len(case.maps), len(case.maps[0])
        self.to_points = torch.nn.Linear(case.channels, case.points * views * 2)
        self.to_weights = torch.nn.Linear(case.channels, case.points * views * levels * case.groups)
        self.project = torch.nn.Linear(case.channels, case.channels)
        self.shape = (case.points, views, levels)

    def forward(self, query, features, shapes, starts):
        points, views, levels = self.shape
        locations = self.to_points(query).sigmoid().unflatten(-1, (points, views, 2))
        weights = self.to_weights(query)
        weights = weights.unflatten(-1, (points * views * levels, self.case.groups)).softmax(-2)
        weights = weights.unflatten(-2, (points, views, levels))
        return self.project(deformable_aggregation(features, shapes, starts, locations, weights))


def block_inputs(case: Case):
    features, shapes, starts, _, _ = make_inputs(case)
    return (
        torch.randn(case.batch, case.anchors, case.channels, device="cuda"),
        features,
        shapes,
        starts,
    )


def test_gradients_equal_double_on_the_cpu() -> None:
    inputs = make_inputs(MODEL)
    leaves = [inputs[i].clone().requires_grad_() for i in (0, 3, 4)]
    output = deformable_aggregation(leaves[0], *inputs[1:3], *leaves[1:])
    grad = torch.randn_like(output)
    found = torch.autograd.grad(output, leaves, grad)
    expected = truth(tuple(value.cpu() for value in inputs), grad.cpu())[1]
    for value, want in zip(found, expected, strict=True):
        assert relative(value.cpu(), want) < 5e-6


def test_deterministic_mode_of_torch() -> None:
    inputs = make_inputs(MODEL)
    leaves = [inputs[i].clone().requires_grad_() for i in (0, 3, 4)]
    torch.use_deterministic_algorithms(True)
    try:
        runs = []
        for _ in range(5):
            output = deformable_aggregation(leaves[0], *inputs[1:3], *leaves[1:])
            runs.append(torch.autograd.grad(output.square().sum(), leaves))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(all(map(torch.equal, run, runs[0])) for run in runs)


def test_opcheck() -> None:
    for dtype in (torch.float32, torch.float16):
        inputs = list(make_inputs(SMALL, dtype))
        inputs[3] = inputs[3].nan_to_num(0.3, 0.3, 0.3)
        for i in (0, 3, 4):
            inputs[i].requires_grad_()
        torch.library.opcheck(torch.ops.s4d.deformable_aggregation.default, tuple(inputs))


def test_gradcheck_in_double() -> None:
    inputs = list(make_inputs(SMALL, torch.float64))
    inputs[3] = torch.rand_like(inputs[3]) * 0.8 + 0.1
    for i in (0, 3, 4):
        inputs[i].requires_grad_()
    assert torch.autograd.gradcheck(deformable_aggregation, inputs, nondet_tol=1e-12)


def test_compile_of_the_aggregation_block() -> None:
    torch.manual_seed(0)
    block = Block(MODEL).cuda()
    inputs = block_inputs(MODEL)
    compiled = torch.compile(block, fullgraph=True)
    expected = block(*inputs)
    assert relative(compiled(*inputs), expected) < 1e-5
    compiled(*inputs).square().mean().backward()
    found = [p.grad.clone() for p in block.parameters()]
    block.zero_grad()
    block(*inputs).square().mean().backward()
    for parameter, value in zip(block.parameters(), found, strict=True):
        assert relative(value, parameter.grad) < 1e-3


def test_cuda_graph_of_the_aggregation_block() -> None:
    block = Block(MODEL).cuda()
    query, *rest = block_inputs(MODEL)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        block(query, *rest).square().sum().backward()
    torch.cuda.current_stream().wait_stream(stream)
    block.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = block(query, *rest)
        output.square().sum().backward()
    query.copy_(torch.randn_like(query))
    output.detach().fill_(float("nan"))
    graph.replay()
    captured = output.detach().clone()
    gradients = [p.grad.clone() for p in block.parameters()]
    block.zero_grad(set_to_none=True)
    expected = block(query, *rest)
    assert torch.equal(captured, expected)
    expected.square().sum().backward()
    for parameter, value in zip(block.parameters(), gradients, strict=True):
        assert relative(value, parameter.grad) < 1e-5


def test_half_features_under_autocast() -> None:
    inputs = make_inputs(MODEL, torch.float16, weight_dtype=torch.float32)
    with torch.autocast("cuda"):
        assert deformable_aggregation(*inputs).dtype == torch.float16


def test_mixed_devices_are_refused() -> None:
    from s4d_ops import InvalidInputError

    inputs = list(make_inputs(SMALL))
    inputs[1] = inputs[1].cpu()
    with pytest.raises(InvalidInputError, match="one device"):
        deformable_aggregation(*inputs)
