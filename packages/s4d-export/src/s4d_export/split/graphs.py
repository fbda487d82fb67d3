"""Exports of SparseEnd2End's shape: three graphs for those who have its runtime (``--split``)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor

from s4d_core import Sparse4D

from ..errors import GraphError, UnwritableOutputError
from ..graph.check import MAX_BYTES, infer_shapes
from ..graph.schema import OP_TYPE
from ..graph.tracing import trace
from .modules import FirstHead, LaterHead, SplitBackbone, check_splittable
from .opset15 import to_opset15

__all__ = ["ANCHOR_FILE", "FILES", "OP", "export_split", "save_split"]

FILES = {
    "backbone": "sparse4dbackbone.onnx",
    "first": "sparse4dhead1st.onnx",
    "later": "sparse4dhead2nd.onnx",
}
ANCHOR_FILE = "instance_bank_anchor_float32.bin"
OP = ("custom", "DeformableAttentionAggrPlugin")
PREDICTIONS = (
    "pred_instance_feature",
    "pred_anchor",
    "pred_class_score",
    "pred_quality_score",
    "pred_track_id",
)


def export_split(model: Sparse4D) -> dict[str, onnx.ModelProto]:
    """The three graphs by the keys of ``FILES``: opset 15, float32, batch 1, static shapes.

    The aggregation is ``custom::DeformableAttentionAggrPlugin`` and its results are outputs
    ``tmp_outs0...`` of the heads: that system's plugin adds into its output without clearing it,
    and its runtime clears the buffers of outputs only.

    Raises:
        ExportError: not a v3 model, or it cannot be traced.
        GraphError: an operator has no form in opset 15.
    """
    check_splittable(model)
    backbone = trace(SplitBackbone(model), {"img": _images(model)}, ["feature"], "sparse4dbackbone")
    graphs = {"backbone": backbone}
    for key, wrapped, inputs in (
        ("first", FirstHead(model), _head_inputs(model, later=False)),
        ("later", LaterHead(model), _head_inputs(model, later=True)),
    ):
        outputs = list(PREDICTIONS[: 5 if key == "later" else 4])
        graph = trace(wrapped, inputs, outputs, Path(FILES[key]).stem)
        _expose_aggregations(graph)
        graphs[key] = graph
    for key, graph in graphs.items():
        to_opset15(graph)
        if key != "backbone":
            _rename_operator(graph)
        if graph.ByteSize() > MAX_BYTES:
            raise GraphError(f"{FILES[key]} has more bytes than one ONNX file holds")
    return graphs


def save_split(
    graphs: Mapping[str, onnx.ModelProto], model: Sparse4D, folder: str | os.PathLike[str]
) -> list[Path]:
    """Write the graphs, and the anchors as that system's runtime reads them, into a folder.

    The anchors are trained parameters: the file of k-means centres is not a substitute.

    Raises:
        UnwritableOutputError: a file cannot be written; none of them is left behind.
    """
    target = Path(folder)
    contents = {
        FILES[key]: graph.SerializeToString(deterministic=True) for key, graph in graphs.items()
    }
    anchors = model.head.bank.anchor.detach().float().cpu().numpy()
    contents[ANCHOR_FILE] = np.ascontiguousarray(anchors).tobytes()
    parts: list[tuple[Path, Path]] = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, data in contents.items():
            part = target / f".{name}.part"
            parts.append((part, target / name))
            part.write_bytes(data)
        for part, path in parts:
            os.replace(part, path)
    except OSError as error:
        for part, _ in parts:
            part.unlink(missing_ok=True)
        raise UnwritableOutputError(
            f"cannot write into {str(target)!r}: {error.strerror or error}; nothing was left behind"
        ) from None
    return [path for _, path in parts]


def _images(model: Sparse4D) -> Tensor:
    height, width = model.config.image.size
    return torch.zeros(1, model.config.num_cameras, 3, height, width)


def _head_inputs(model: Sparse4D, later: bool) -> dict[str, Tensor]:
    config = model.config
    cameras, count, channels = config.num_cameras, config.num_anchors, config.embed_dims
    rows = int(sum(h * w for h, w in model._sizes)) * cameras
    inputs = {
        "feature": torch.zeros(1, rows, channels),
        "spatial_shapes": model.spatial_shapes.to(torch.int32),
        "level_start_index": model.level_start_index.to(torch.int32),
        "instance_feature": torch.zeros(1, count, channels),
        "anchor": torch.zeros(1, count, 11),
        "time_interval": torch.ones(1),
    }
    if later:
        inputs |= {
            "temp_instance_feature": torch.zeros(1, config.num_temporal, channels),
            "temp_anchor": torch.zeros(1, config.num_temporal, 11),
            "mask": torch.zeros(1, dtype=torch.int32),
            "track_id": torch.zeros(1, count, dtype=torch.int32),
        }
    return inputs | {
        "image_wh": torch.zeros(1, cameras, 2),
        "lidar2img": torch.zeros(1, cameras, 4, 4),
    }


def _expose_aggregations(graph: onnx.ModelProto) -> None:
    """Results of the aggregation become outputs ``tmp_outs0...``; index tables are inputs."""
    shapes = {v.name: v.type for v in infer_shapes(graph).graph.value_info}
    number = 0
    for node in graph.graph.node:
        if node.op_type != OP_TYPE:
            continue
        node.input[1], node.input[2] = "spatial_shapes", "level_start_index"
        old, new = node.output[0], f"tmp_outs{number}"
        node.output[0] = new
        for other in graph.graph.node:
            other.input[:] = [new if name == old else name for name in other.input]
        graph.graph.output.append(helper.make_value_info(new, shapes[old]))
        number += 1
    _drop_dead_nodes(graph.graph)


def _drop_dead_nodes(graph: onnx.GraphProto) -> None:
    """The casts of the index tables have no reader any more."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    kept.reverse()
    constants = [value for value in graph.initializer if value.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(constants)


def _rename_operator(graph: onnx.ModelProto) -> None:
    for node in graph.graph.node:
        if node.op_type == OP_TYPE:
            node.domain, node.op_type = OP
            del node.attribute[:]
    for entry in graph.opset_import:
        if entry.domain not in ("", "ai.onnx"):
            entry.domain = OP[0]
