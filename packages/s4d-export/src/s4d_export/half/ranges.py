"""How the values of every half-precision tensor lie in float16's range, measured in float32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..graph.naming import module_of
from ..graph.session import GraphSession
from ..graph.surgery import extract
from .conversion import HALF_MAX

__all__ = ["TensorRange", "constant_ranges", "measure_ranges"]

# Values from here on become infinite in float16; between 65504 and it they round down.
OVERFLOW = 65520.0
FIGURES = ("peak", "over", "flushed", "energy", "error")


@dataclass
class TensorRange:
    """One tensor over all frames.

    Attributes:
        name: of the tensor; ``module`` is the PyTorch module that makes it.
        peak: largest magnitude; NaN or infinite where float32 itself is.
        over: share of the values that become infinite or NaN in float16.
        flushed: share of the values that are not zero and become zero.
        rounding: norm of what float16 rounds away over the norm of the values. About 3e-4 is
            normal; more means that the digits are lost below float16's normal range.
    """

    name: str
    module: str
    peak: float = 0.0
    over: float = 0.0
    flushed: float = 0.0
    rounding: float = 0.0

    @property
    def headroom(self) -> float:
        """How many times larger the values could be: 65504 over the peak."""
        return float(HALF_MAX / self.peak) if self.peak else float("inf")


def measure_ranges(
    model: onnx.ModelProto, tensors: Iterable[str], feeds: Iterable[Mapping[str, NDArray[Any]]]
) -> list[TensorRange]:
    """Ranges of tensors of the float32 graph, in the graph's order.

    The figures are formed inside the graph, so that no tensor leaves it.

    Args:
        feeds: complete inputs, one entry per frame.
    """
    wanted = set(tensors)
    graph = model.graph
    names = [
        name
        for name in [*(v.name for v in graph.input), *(o for n in graph.node for o in n.output)]
        if name in wanted
    ]
    if not names:
        return []
    session = GraphSession(_with_figures(extract(model, names), names), optimise=False)
    total: dict[str, dict[str, float]] = {name: dict.fromkeys(FIGURES, 0.0) for name in names}
    count = 0
    for frame in feeds:
        count += 1
        for key, value in session.run(frame).items():
            name, figure = key.rsplit("#", 1)
            entry, number = total[name], float(value)
            if figure == "peak":
                entry[figure] = max(entry[figure], number) if np.isfinite(number) else number
            else:
                entry[figure] += number
    result = []
    for name in names:
        entry = total[name]
        rounding = np.sqrt(entry["error"] / entry["energy"]) if entry["energy"] > 0 else 0.0
        result.append(
            TensorRange(
                name,
                module_of(name) if "/" in name else "graph",
                entry["peak"],
                entry["over"] / count,
                entry["flushed"] / count,
                float(rounding),
            )
        )
    return result


def constant_ranges(model: onnx.ModelProto, names: Iterable[str]) -> list[TensorRange]:
    """The same figures of constants of the float32 graph."""
    wanted, result = set(names), []
    for value in model.graph.initializer:
        if value.name not in wanted:
            continue
        exact = numpy_helper.to_array(value).astype(np.float64)
        with np.errstate(over="ignore"):
            stored = exact.astype(np.float16).astype(np.float64)
        over = ~np.isfinite(stored)
        error = np.where(over, exact, stored - exact)
        energy = float(np.square(exact).sum())
        result.append(
            TensorRange(
                value.name,
                value.name.rsplit("/", 1)[0].rsplit(".", 1)[0],
                float(np.abs(exact).max(initial=0.0)),
                float(over.mean()) if exact.size else 0.0,
                float(((stored == 0) & (exact != 0)).mean()) if exact.size else 0.0,
                float(np.sqrt(np.square(error).sum() / energy)) if energy else 0.0,
            )
        )
    return result


def _with_figures(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """Replace the outputs by five numbers per tensor, named ``TENSOR#FIGURE``."""
    graph = model.graph
    del graph.output[:]
    constants = {
        "#limit": np.array(OVERFLOW, np.float32),
        "#zero": np.array(0, np.float32),
    }
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())

    def add(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(op, inputs, [output], output, **attributes))
        return output

    for name in names:

        def total(tensor: str, figure: str, op: str = "ReduceMean", name: str = name) -> None:
            add(op, [tensor], f"{name}#{figure}", keepdims=0)
            graph.output.append(
                helper.make_tensor_value_info(f"{name}#{figure}", TensorProto.FLOAT, [])
            )

        def share(flag: str, figure: str, name: str = name) -> None:
            number = add("Cast", [flag], f"{name}#{figure}.number", to=TensorProto.FLOAT)
            total(number, figure, name=name)

        size = add("Abs", [name], f"{name}#abs")
        total(size, "peak", "ReduceMax")
        # "Not below the limit" counts NaN too.
        share(add("Not", [add("Less", [size, "#limit"], f"{name}#in")], f"{name}#out"), "over")
        half = add("Cast", [name], f"{name}#half", to=TensorProto.FLOAT16)
        back = add("Cast", [half], f"{name}#back", to=TensorProto.FLOAT)
        gone = add("Equal", [back, "#zero"], f"{name}#gone")
        some = add("Greater", [size, "#zero"], f"{name}#some")
        share(add("And", [gone, some], f"{name}#both"), "flushed")
        total(add("Mul", [name, name], f"{name}#square"), "energy")
        lost = add("Sub", [back, name], f"{name}#lost")
        total(add("Mul", [lost, lost], f"{name}#lost2"), "error")
    return model
