"""Pictures are turned to channels first while they are bytes, before they become numbers.

Graphs subtract the mean and divide by the deviation with the channels last, three values to a
pixel, and turn the result. ONNX Runtime's CPU kernels then add three values at a time; on planes
they take a whole plane at once, and bytes are a quarter as much to turn. Every value is computed as
before, so the results have the same bits. The artifact stays as it is.
"""

from __future__ import annotations

from ..errors import OnnxFileError
from .consumers import Consumers
from .onnx_edit import EditableModel, Node

__all__ = ["turn_pictures_first"]

PICTURES, TURNED = "images", "images.planar"
PER_VALUE = ("Sub", "Div", "Mul", "Add")  # with a constant


def turn_pictures_first(model: bytes) -> bytes:
    """The model so changed, or the model itself where its pictures take another way."""
    try:
        graph = EditableModel(model)
        return graph.encode() if _turn(graph) else model
    # What a graph that is not sound leads to; the engine will say what is wrong with it.
    except (OnnxFileError, ValueError, TypeError, LookupError, ArithmeticError, StopIteration):
        return model


def _turn(graph: EditableModel) -> bool:
    if any(node.has_graph for node in graph.nodes):
        return False  # inner graphs read tensors without naming them as inputs
    if len(graph.input_shapes.get(PICTURES, ())) != 4:
        return False
    way = _way(graph)
    if way is None:
        return False
    *steps, turn = way
    rank = 4 + sum(node.op_type == "Unsqueeze" for node in steps)
    leading = list(range(rank - 3))
    if turn.attributes.get("perm") != [*leading, rank - 1, rank - 3, rank - 2]:
        return False
    for node in steps:
        if node.op_type in PER_VALUE and not _spread(graph, node):
            return False
    first, last = steps[0], steps[-1]
    first.inputs[0] = TURNED
    last.outputs[0] = turn.outputs[0]
    for node in (first, last):
        node.raw = None
    place = graph.nodes.index(first)
    graph.nodes.insert(place, Node("Transpose", [PICTURES], [TURNED], {"perm": [0, 3, 1, 2]}))
    graph.nodes.remove(turn)
    return True


def _way(graph: EditableModel) -> list[Node] | None:
    """From the pictures to their Transpose, if nothing else reads what lies between."""
    consumers = Consumers(graph)
    way: list[Node] = []
    name = PICTURES
    while not way or way[-1].op_type != "Transpose":
        readers = consumers.get(name, [])
        if len(readers) != 1 or name in graph.outputs or readers[0].inputs[0] != name:
            return None
        node = readers[0]
        if node.domain != "" or node.op_type not in ("Cast", "Unsqueeze", "Transpose", *PER_VALUE):
            return None
        if node.op_type == "Unsqueeze":
            axes = graph.array(node.inputs[1])
            if axes is None or axes.tolist() != [0]:
                return None
        way.append(node)
        name = node.outputs[0]
    return way if len(way) > 1 else None


def _spread(graph: EditableModel, node: Node) -> bool:
    """The constant of a step, one value for each channel, in the shape that fits planes."""
    name = node.inputs[1]
    values = graph.array(name)
    if values is None or values.ndim > 1:
        return False
    if values.size > 1:
        node.inputs[1] = graph.add(f"{name}.planar", values.reshape(-1, 1, 1))
        node.raw = None
    return True
