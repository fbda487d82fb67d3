"""What a search or a quantisation starts from: the float32 graph of a checkpoint or artifact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from s4d_core import Sparse4DConfig, load_checkpoint
from s4d_runtime.artifact import read_artifact

from ..errors import ExportError
from ..graph.tracing import Op, export_graph
from ..inspection import load_graph

__all__ = ["Source", "load_source"]


@dataclass(frozen=True)
class Source:
    """A float32 graph, the configuration of its model, and how it writes the aggregation."""

    graph: onnx.ModelProto
    config: Sparse4DConfig
    op: Op


def load_source(path: str, op: Op = "plugin") -> Source:
    """Export a checkpoint folder, or read an fp32 artifact.

    Args:
        op: of the export; an artifact has its own.

    Raises:
        ExportError: the artifact holds an engine or another precision.
    """
    if Path(path).is_dir() or not path.endswith(".s4d"):
        model = load_checkpoint(path)
        return Source(export_graph(model, op), model.config, op)
    with read_artifact(path) as opened:
        manifest = opened.manifest
    if manifest.kind != "onnx" or manifest.precision != "fp32":
        raise ExportError(
            f"expected an fp32 ONNX artifact, {path!r} is an {manifest.precision} "
            f"{manifest.kind}; give the checkpoint or its fp32 export"
        )
    config = Sparse4DConfig.from_dict(manifest.model)
    return Source(load_graph(path)[0], config, manifest.op)
