"""A float32 graph to one with half-precision parts; the types are written in the file.

Every tensor is float16 or float32 by the node that makes it; casts stand where the two meet.
Nothing is left to the engine: the same file means the same on every strongly typed runtime.
Inputs, outputs and state stay float32.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..errors import QuantizationError
from ..graph.check import infer_shapes
from ..graph.naming import module_of
from ..graph.schema import OP_TYPE
from .plan import DEFAULT_PLAN, PrecisionPlan

__all__ = ["HALF_MAX", "check_plan", "to_half"]

HALF_MAX = 65504.0
# Nodes that move values and do not compute: they take the type that comes.
MOVES = {
    *("Reshape", "Transpose", "Concat", "Slice", "Gather", "GatherElements", "Squeeze"),
    *("Unsqueeze", "Expand", "Identity", "Flatten", "Split", "Pad", "Where"),
}
# Inputs whose type the operator fixes, by position.
FIXED_INPUTS = {"Resize": {1, 2}, OP_TYPE: {1, 2, 3, 4}}
# Operators whose result has a type of its own.
TYPED = {"Cast", "QuantizeLinear", "DequantizeLinear", "Constant", "ConstantOfShape", "Range"}


def to_half(model: onnx.ModelProto, plan: PrecisionPlan = DEFAULT_PLAN) -> onnx.ModelProto:
    """A copy of a float32 model with the planned nodes in float16.

    Args:
        model: with the names of ``naming.rename_graph``.
        plan: which nodes; ``check_plan`` finds rules that match nothing.

    Raises:
        GraphError: the result contradicts itself (never with an unedited graph).
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    conversion = _Conversion(result, plan)
    conversion.run()
    infer_shapes(result)
    return result


def check_plan(model: onnx.ModelProto, plan: PrecisionPlan) -> None:
    """Every rule must match a node: one that matches nothing was mistyped.

    Rules of the built-in plan need not: they are written for all models.

    Raises:
        QuantizationError: names the rule.
    """
    names = [node.name for node in model.graph.node]
    for rule in plan.rules:
        known = rule in DEFAULT_PLAN.rules
        if not known and not any(fnmatchcase(name, rule.nodes) for name in names):
            raise QuantizationError(
                f"the precision plan's {rule.nodes!r} matches no node of the graph; "
                "s4d-export inspect shows the module names"
            )


class _Conversion:
    """Walks the graph once, in order, and rebuilds its node list."""

    def __init__(self, model: onnx.ModelProto, plan: PrecisionPlan) -> None:
        self.graph = model.graph
        self.plan = plan
        inferred = infer_shapes(model).graph
        values = [*inferred.value_info, *inferred.input, *inferred.output]
        self.float32 = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
        self.constants = {value.name: value for value in self.graph.initializer}
        self.float32 |= {
            name for name, v in self.constants.items() if v.data_type == TensorProto.FLOAT
        }
        self.outputs = {value.name for value in self.graph.output}
        self.half: set[str] = set()  # tensors that are float16 now
        self.casts: dict[tuple[str, int], str] = {}
        self.half_constants: dict[str, str] = {}
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> None:
        """Convert the graph in place."""
        for node in list(self.graph.node):
            wanted = TensorProto.FLOAT16 if self._is_half(node) else TensorProto.FLOAT
            fixed = FIXED_INPUTS.get(node.op_type, set())
            for position, name in enumerate(node.input):
                if name in self.float32:
                    kind = TensorProto.FLOAT if position in fixed else wanted
                    node.input[position] = self._as(name, kind)
            self.nodes.append(node)
            if wanted == TensorProto.FLOAT16:
                self._mark_outputs(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        kept = [value for value in self.graph.initializer if value.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _is_half(self, node: onnx.NodeProto) -> bool:
        if node.op_type in TYPED or not any(name in self.float32 for name in node.output):
            return False
        rule = self.plan.rule_for(node.name)
        inputs = [name for name in node.input if name in self.float32]
        if rule is None or rule.precision == "fp32":
            moving = [name for name in inputs if name not in self.constants]
            follows = rule is None and node.op_type in MOVES
            return follows and bool(moving) and all(name in self.half for name in moving)
        # A constant beyond float16's range keeps its node in float32.
        return all(self._fits(name) for name in inputs if name in self.constants)

    def _fits(self, name: str) -> bool:
        values = numpy_helper.to_array(self.constants[name])
        return bool(np.abs(values).max(initial=0.0) <= HALF_MAX)

    def _as(self, name: str, kind: int) -> str:
        """Name of the tensor in type `kind`; makes a cast or a constant where there is none."""
        is_half = name in self.half
        if (kind == TensorProto.FLOAT16) == is_half:
            return name
        if name in self.constants:
            return self._half_constant(name)
        known = self.casts.get((name, kind))
        if known is None:
            suffix = "half" if kind == TensorProto.FLOAT16 else "float"
            known = f"{name}.{suffix}"
            cast = f"{module_of(name) if '/' in name else 'graph'}/Cast.{suffix}.{len(self.casts)}"
            self.nodes.append(helper.make_node("Cast", [name], [known], name=cast, to=kind))
            self.casts[name, kind] = known
        return known

    def _half_constant(self, name: str) -> str:
        known = self.half_constants.get(name)
        if known is None:
            known = f"{name}.half"
            values = numpy_helper.to_array(self.constants[name]).astype(np.float16)
            self.graph.initializer.append(numpy_helper.from_array(values, known))
            self.half_constants[name] = known
        return known

    def _mark_outputs(self, node: onnx.NodeProto) -> None:
        for position, name in enumerate(node.output):
            if name not in self.float32:
                continue
            if name not in self.outputs:
                self.half.add(name)
                continue
            inner = f"{name}.half"
            node.output[position] = inner
            self.nodes.append(
                helper.make_node(
                    "Cast", [inner], [name], name=f"graph/Cast.{name}", to=TensorProto.FLOAT
                )
            )
