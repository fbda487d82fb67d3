"""Readable, stable names: every node carries the path of the PyTorch module it comes from.

A node is called ``<module path>/<operator>``, for example ``head.layers.3.attn/MatMul_2``; its
output has the node's name. What belongs to no named module stands under ``graph``. The precision
plan, the overflow search and TensorRT's layer log all speak in these names.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable

import onnx

__all__ = ["module_of", "rename_graph"]

SCOPES = "pkg.torch.onnx.name_scopes"
FX_NODE = "pkg.torch.onnx.fx_node"
ROOT = "graph"


def module_of(node_name: str) -> str:
    """Module path of a node named by this module (``graph`` where there is none)."""
    return node_name.rsplit("/", 1)[0]


def rename_graph(model: onnx.ModelProto, prefix: str, parameters: Iterable[str]) -> None:
    """Rename nodes, tensors and constants in place and drop the exporter's own notes.

    Args:
        model: as ``torch.onnx.export`` made it, functions inlined.
        prefix: attribute of the exported wrapper that holds the model; cut off module paths.
        parameters: names of the wrapper's parameters and buffers.

    The names of the graph's inputs and outputs stay.
    """
    graph = model.graph
    paths = _module_paths(graph, prefix, parameters)
    tensors = {value.name: value.name for value in [*graph.input, *graph.output]}
    seen: Counter[str] = Counter()
    for node, path in zip(graph.node, paths, strict=True):
        node.name = _unique(f"{path}/{node.op_type}", seen)
        for position, output in enumerate(node.output):
            if output and output not in tensors:
                tensors[output] = f"{node.name}.{position}" if position else node.name
    _name_constants(graph, tensors, prefix)
    for node in graph.node:
        node.input[:] = [tensors.get(name, name) for name in node.input]
        node.output[:] = [tensors.get(name, name) for name in node.output]
        node.doc_string = ""
        del node.metadata_props[:]
    for value in graph.initializer:
        value.name = tensors.get(value.name, value.name)
        value.doc_string = ""
        del value.metadata_props[:]
    for info in [*graph.input, *graph.output]:
        info.doc_string = ""
        del info.metadata_props[:]
    del graph.value_info[:]
    del graph.metadata_props[:]


def _module_paths(graph: onnx.GraphProto, prefix: str, parameters: Iterable[str]) -> list[str]:
    owners = {name.replace(".", "_"): name.rpartition(".")[0] for name in parameters}
    paths: list[str | None] = []
    for node in graph.node:
        notes = {item.key: item.value for item in node.metadata_props}
        path: str | None = None
        if SCOPES in notes:
            scopes = ast.literal_eval(notes[SCOPES])
            path = scopes[-2] if len(scopes) > 1 else ""
            # Regions with autocast switched off lose their inner scopes; the parameters that the
            # operation uses say which module it is.
            used = re.findall(r"%[pb]_(\w+)", notes.get(FX_NODE, ""))
            modules = {owners[name] for name in used if name in owners}
            if len(modules) == 1 and (owner := modules.pop()).startswith(path):
                path = owner
        if node.op_type == "Conv" and node.input[1].endswith(".weight"):
            path = node.input[1][: -len(".weight")]  # a folded norm leaves its own name behind
        paths.append(path)
    # Nodes that an optimiser made carry no note: they belong where their result is used.
    producer_of = {out: i for i, node in enumerate(graph.node) for out in node.output if out}
    for index in reversed(range(len(graph.node))):
        for name in graph.node[index].input:
            source = producer_of.get(name)
            if source is not None and paths[source] is None:
                paths[source] = paths[index]
    return [_strip(path or "", prefix) or ROOT for path in paths]


def _strip(path: str, prefix: str) -> str:
    if path == prefix:
        return ""
    return path[len(prefix) + 1 :] if path.startswith(prefix + ".") else path


def _unique(name: str, seen: Counter[str]) -> str:
    seen[name] += 1
    return name if seen[name] == 1 else f"{name}_{seen[name]}"


def _name_constants(graph: onnx.GraphProto, tensors: dict[str, str], prefix: str) -> None:
    """Parameters keep their state-dict name; a folded constant is named after its first user."""
    used = set(tensors.values())
    first_user: dict[str, tuple[str, int]] = {}
    for node in graph.node:
        for position, name in enumerate(node.input):
            first_user.setdefault(name, (node.name, position))
    for value in graph.initializer:
        if value.name in tensors:
            continue
        name = _strip(value.name, prefix)
        if not value.name.startswith(prefix + ".") and value.name in first_user:
            user, position = first_user[value.name]
            name = f"{user}.in{position}"
        while name in used:
            name += "_"
        tensors[value.name] = name
        used.add(name)
