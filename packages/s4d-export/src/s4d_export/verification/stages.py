"""Errors part by part: what the modules of the model give, against the same tensors of a graph.

Both sides get the same inputs and the same state in every frame, so an error does not travel from
frame to frame, and its place is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from s4d_core import Sparse4D

from ..errors import VerificationError
from ..frames import GraphFrame, frame_inputs
from ..graph.deployed import DeployedModel
from ..graph.session import GraphSession
from ..graph.surgery import tensor_types, with_outputs
from .figures import Errors, Tolerance
from .matching import Rows, match_rows

__all__ = ["compare_stages", "stage_modules", "stage_tensors"]

Array = NDArray[Any]


def stage_modules(model: Sparse4D) -> list[str]:
    """Paths of the modules whose results are compared, in order: the end of every stage of the
    backbone, every level of the pyramid, and feature and box of every decoder."""
    paths = []
    for name, child in model.backbone.named_children():
        if isinstance(child, nn.Sequential) and len(child) and len(list(child[-1].children())):
            paths.append(f"backbone.{name}.{len(child) - 1}")
    paths += [name for name, _ in model.named_modules() if name.startswith("neck.output.")]
    for number in range(len(model.head.layers)):
        paths += [f"head.layers.{number}.ffn_norm", f"head.layers.{number}.refinement"]
    return paths


def stage_tensors(graph: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """The tensor that holds each module's result: the last of its shape made inside the module.

    Args:
        shapes: of the results, by module path.

    Raises:
        VerificationError: a module is not in the graph (it was not exported from this model).
    """
    types = tensor_types(graph)
    made: dict[str, str] = {}  # tensor to the name of its node
    found: dict[str, str] = {}
    for node in graph.graph.node:
        made.update(dict.fromkeys(node.output, node.name))
        # Regions without autocast lose their module at a closing Concat: its inputs tell it.
        names = [node.name]
        if node.op_type == "Concat":
            names += [made[name] for name in node.input if name in made]
        for name in node.output:
            shape = tuple(dim.dim_value for dim in types[name].tensor_type.shape.dim)
            for path, wanted in shapes.items():
                inside = (f"{path}.", f"{path}/")
                if shape == wanted and any(other.startswith(inside) for other in names):
                    found[path] = name
    missing = [path for path in shapes if path not in found]
    if missing:
        raise VerificationError(f"the graph has no tensor for the result of {missing[0]!r}")
    return {path: found[path] for path in shapes}


@torch.no_grad()
def compare_stages(
    model: Sparse4D, graph: onnx.ModelProto, frames: Iterable[GraphFrame], tolerance: Tolerance
) -> list[dict[str, Any]]:
    """Errors of every stage over all frames, on ONNX Runtime's CPU provider.

    Rows of the decoders are matched by their boxes first: where scores are near, the two sides
    may order the instances that a frame adds differently. ``unmatched`` counts rows without
    partner.
    """
    wrapped = DeployedModel(model).eval()
    contract = wrapped.contract
    state = {
        spec.name: torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype))
        for spec in contract.inputs
        if spec.name in contract.state
    }
    session: GraphSession | None = None
    tensors: dict[str, str] = {}
    errors: dict[str, Errors] = {}
    unmatched: dict[str, int] = {}
    previous: GraphFrame | None = None
    for frame in frames:
        inputs = {
            name: torch.from_numpy(np.ascontiguousarray(value))
            for name, value in frame_inputs(frame, previous).items()
        }
        results, expected = _observe(model, wrapped, {**inputs, **state})
        if session is None:
            tensors = stage_tensors(graph, {path: v.shape for path, v in expected.items()})
            session = GraphSession(with_outputs(graph, tensors.values()))
        feeds = {name: value.numpy() for name, value in {**inputs, **state}.items()}
        values = session.run(feeds, list(dict.fromkeys(tensors.values())))
        got = {path: values[name].astype(np.float32) for path, name in tensors.items()}
        for path, lost in _record(expected, got, errors, tolerance).items():
            unmatched[path] = unmatched.get(path, 0) + lost
        outputs = dict(zip((s.name for s in contract.outputs), results, strict=True))
        state = {name: outputs[source] for name, source in contract.state.items()}
        previous = frame
    return [
        {"stage": path, "tensor": tensors[path], **errors[path].summary()}
        | ({"unmatched": unmatched[path]} if path in unmatched else {})
        for path in tensors
    ]


def _observe(
    model: Sparse4D, wrapped: DeployedModel, inputs: dict[str, torch.Tensor]
) -> tuple[tuple[torch.Tensor, ...], dict[str, Array]]:
    """The outputs of the model for its inputs in order, and the results of its stages."""
    seen: dict[str, Array] = {}

    def keep(path: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def hook(module: nn.Module, given: Any, result: torch.Tensor) -> None:
            seen[path] = result.numpy().copy()  # what follows may work in place

        return hook

    handles = [
        model.get_submodule(path).register_forward_hook(keep(path)) for path in stage_modules(model)
    ]
    try:
        results = wrapped(*inputs.values())
    finally:
        for handle in handles:
            handle.remove()
    return results, {path: seen[path] for path in stage_modules(model) if path in seen}


def _record(
    expected: dict[str, Array],
    got: dict[str, Array],
    errors: dict[str, Errors],
    tolerance: Tolerance,
) -> dict[str, int]:
    """Add one frame; returns the rows without partner of the decoders' stages."""
    lost: dict[str, int] = {}
    for path, truth in expected.items():
        a, b = truth, got[path]
        if path.startswith("head."):
            box = path.rsplit(".", 1)[0] + ".refinement"
            match = match_rows(_rows(expected[box][0]), _rows(got[box][0]), tolerance.radius, None)
            a, b = a[0, match.first], b[0, match.second]
            lost[path] = len(match.left_over_first)
        difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
        errors.setdefault(path, Errors()).add(a, b, difference)
    return lost


def _rows(boxes: Array) -> Rows:
    count = len(boxes)
    zeros = np.zeros(count, np.int64)
    return Rows(boxes.astype(np.float64), zeros.astype(np.float64), zeros, np.arange(count))
