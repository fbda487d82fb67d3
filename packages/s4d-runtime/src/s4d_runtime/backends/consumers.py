"""Who reads a tensor: what every rewriting of a graph asks before it takes nodes together."""

from __future__ import annotations

from .onnx_edit import EditableModel, Node

__all__ = ["Consumers"]


class Consumers(dict[str, list[Node]]):
    """The nodes that read each tensor, once for every time they do; the graph as it is now."""

    def __init__(self, graph: EditableModel) -> None:
        super().__init__()
        self._outputs = graph.outputs
        for node in graph.nodes:
            for name in node.inputs:
                self.setdefault(name, []).append(node)

    def only(self, name: str, op_type: str) -> Node | None:
        """The node that alone reads the tensor, if it is of this ONNX operator."""
        users = self.get(name, [])
        if name in self._outputs or len(users) != 1:
            return None
        return users[0] if (users[0].domain, users[0].op_type) == ("", op_type) else None
