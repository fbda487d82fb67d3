"""The first tensor of a graph that is not what the checkpoint's own export computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from ..graph.naming import module_of
from ..graph.nearness import relative_error
from ..graph.session import GraphSession
from ..graph.surgery import tensor_types, with_outputs

__all__ = ["LIMITS", "first_divergence"]

# Relative error of a tensor from which it counts as diverged, by precision.
LIMITS = {"fp32": 1e-3, "fp16": 3e-2, "int8": 0.3}
CHUNK = 48  # tensors looked at in one run: a whole frame of them would not fit in memory
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


def first_divergence(
    reference: onnx.ModelProto,
    candidate: onnx.ModelProto,
    feeds: Mapping[str, NDArray[Any]],
    limit: float,
) -> dict[str, Any] | None:
    """Compare two graphs tensor by tensor on one frame, in the candidate's order.

    Args:
        reference: the float32 graph, freshly exported.
        candidate: the artifact's graph; tensors are paired by name.
        feeds: all inputs, state included.
        limit: relative error that a tensor may have, see ``LIMITS``.

    Returns:
        None if every shared tensor is within the limit. Else the first that is not: ``tensor``,
        its ``node``, ``module`` and ``error``, the errors of the node's ``inputs`` that could be
        compared, and ``changed``: what is different about the node itself, if anything is.
    """
    names = _shared(reference, candidate)
    errors: dict[str, float] = {}
    for start in range(0, len(names), CHUNK):
        part = names[start : start + CHUNK]
        expected = GraphSession(with_outputs(reference, part), optimise=False).run(feeds, part)
        got = GraphSession(with_outputs(candidate, part), optimise=False).run(feeds, part)
        for name in part:
            errors[name] = relative_error(got[name], expected[name])
            if not errors[name] <= limit:
                return _describe(name, reference, candidate, errors)
    return None


def _shared(reference: onnx.ModelProto, candidate: onnx.ModelProto) -> list[str]:
    """Float tensors that both graphs make, in the candidate's order."""
    ours, theirs = tensor_types(reference), tensor_types(candidate)
    made = {name for node in reference.graph.node for name in node.output}
    return [
        name
        for node in candidate.graph.node
        for name in node.output
        if name in made
        and theirs[name].tensor_type.elem_type in FLOATS
        and ours[name].tensor_type.elem_type in FLOATS
    ]


def _describe(
    tensor: str, reference: onnx.ModelProto, candidate: onnx.ModelProto, errors: dict[str, float]
) -> dict[str, Any]:
    node = _maker(candidate, tensor)
    original = _maker(reference, tensor)
    return {
        "tensor": tensor,
        "node": node.name,
        "module": module_of(node.name) if "/" in node.name else "graph",
        "operator": node.op_type,
        "error": errors[tensor],
        "inputs": {name: errors[name] for name in node.input if name in errors},
        "changed": _changes(node, original, reference, candidate),
    }


def _maker(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if tensor in node.output)


def _changes(
    node: onnx.NodeProto,
    original: onnx.NodeProto,
    reference: onnx.ModelProto,
    candidate: onnx.ModelProto,
) -> list[str]:
    changes = []
    if node.op_type != original.op_type:
        changes.append(f"the operator was {original.op_type}")
    before = sorted(a.SerializeToString(deterministic=True) for a in original.attribute)
    if before != sorted(a.SerializeToString(deterministic=True) for a in node.attribute):
        changes.append("its attributes differ")
    old = {v.name: v for v in reference.graph.initializer}
    new = {v.name: v for v in candidate.graph.initializer}
    for a, b in zip(original.input, node.input, strict=False):
        if a not in old or b not in new:
            continue
        x = numpy_helper.to_array(old[a]).astype(np.float64)
        y = numpy_helper.to_array(new[b]).astype(np.float64)
        if x.shape != y.shape or not np.allclose(x, y, rtol=2e-3, atol=1e-6):
            changes.append(f"the constant {a!r} differs")
    return changes
