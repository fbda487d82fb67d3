"""What an artifact or an ONNX file holds: tables for people, a dict for programs."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from s4d_runtime.artifact import read_artifact

from .errors import GraphError
from .flops import count_flops
from .graph.check import infer_shapes

__all__ = ["describe", "format_description", "load_graph"]


def load_graph(path: str | os.PathLike[str]) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The ONNX graph in an artifact or in a plain ``.onnx`` file, and what the manifest says.

    Raises:
        ArtifactError: the artifact is damaged, or holds an engine and no graph.
        GraphError: not an ONNX file.
    """
    source = Path(path)
    notes: dict[str, Any] = {"file": source.name}
    if source.suffix == ".onnx":
        try:
            data = source.read_bytes()
        except OSError as error:
            raise GraphError(f"cannot read {str(source)!r}: {error.strerror}") from None
    else:
        with read_artifact(source) as artifact:
            manifest = artifact.manifest
            data = artifact.read("model.onnx")
        notes.update(
            name=manifest.name,
            architecture=manifest.model.get("name", "?"),
            precision=manifest.precision,
            op=manifest.op,
            state=dict(manifest.state),
            versions=dict(manifest.versions),
        )
    notes["bytes"] = source.stat().st_size
    try:
        return onnx.load_model_from_string(data), notes
    except Exception as error:  # protobuf's own error types differ between its versions
        raise GraphError(f"{source.name} holds no ONNX graph: {error}") from None


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Inputs, outputs, parameters, operators, precisions, size, state and FLOPs of a file."""
    model, result = load_graph(path)
    graph = infer_shapes(model).graph
    result["opset"] = {item.domain or "ai.onnx": item.version for item in model.opset_import}
    result["inputs"] = [_value(value) for value in graph.input]
    result["outputs"] = [_value(value) for value in graph.output]
    if "state" not in result:
        outputs = {value.name for value in graph.output}
        result["state"] = {
            value.name: "next_" + value.name[len("state_") :]
            for value in graph.input
            if "next_" + value.name.removeprefix("state_") in outputs
        }
    result["nodes"] = len(graph.node)
    result["operators"] = dict(
        Counter(
            f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in graph.node
        ).most_common()
    )
    result["parameters"] = _parameters(graph)
    result["tensors"] = _precisions(graph)
    inferred = onnx.ModelProto()
    inferred.graph.CopyFrom(graph)
    result["flops"] = count_flops(inferred)
    return result


def format_description(info: dict[str, Any]) -> str:
    """The dict of ``describe`` as text."""
    lines = [f"{info['file']}: {info['bytes'] / 1e6:.1f} MB, {info['nodes']} nodes"]
    for key in ("name", "architecture", "precision", "op"):
        if key in info:
            lines.append(f"  {key:13} {info[key]}")
    lines.append("  opset         " + ", ".join(f"{k} {v}" for k, v in info["opset"].items()))
    if "versions" in info:
        lines.append(
            "  made with     " + ", ".join(f"{k} {v}" for k, v in info["versions"].items())
        )
    for label in ("inputs", "outputs"):
        lines.append(f"{label}:")
        lines += [f"  {v['name']:18} {v['dtype']:8} {tuple(v['shape'])}" for v in info[label]]
    lines.append("state (output that feeds each input on the next frame):")
    lines += [f"  {target:18} <- {source}" for target, source in info["state"].items()]
    lines.append("parameters:")
    lines += [
        f"  {k:9} {v['count']:>12,}  {v['bytes'] / 1e6:8.2f} MB"
        for k, v in info["parameters"].items()
    ]
    lines.append("tensors between nodes, by type:")
    lines.append("  " + ", ".join(f"{k} {v}" for k, v in info["tensors"].items()))
    total = sum(info["flops"].values())
    lines.append(f"FLOPs of convolutions and matrix products: {total / 1e9:.2f} G")
    lines += [f"  {name:40} {value / 1e9:10.3f} G" for name, value in info["flops"].items()]
    lines.append("operators:")
    lines.append("  " + ", ".join(f"{k} {v}" for k, v in info["operators"].items()))
    return "\n".join(lines)


def _value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    return {
        "name": value.name,
        "dtype": _name(tensor.elem_type),
        "shape": [dim.dim_value for dim in tensor.shape.dim],
    }


def _name(elem_type: int) -> str:
    return str(helper.tensor_dtype_to_np_dtype(elem_type))


def _parameters(graph: onnx.GraphProto) -> dict[str, dict[str, int]]:
    result: dict[str, dict[str, int]] = {}
    for value in graph.initializer:
        entry = result.setdefault(_name(value.data_type), {"count": 0, "bytes": 0})
        count = int(np.prod(value.dims, dtype=np.int64))
        entry["count"] += count
        entry["bytes"] += count * helper.tensor_dtype_to_np_dtype(value.data_type).itemsize
    return dict(sorted(result.items(), key=lambda item: -item[1]["bytes"]))


def _precisions(graph: onnx.GraphProto) -> dict[str, int]:
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    made = [name for node in graph.node for name in node.output if name in kinds]
    return dict(Counter(_name(kinds[name]) for name in made).most_common())
