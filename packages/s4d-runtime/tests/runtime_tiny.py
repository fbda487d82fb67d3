"""A tiny ONNX graph with the whole input and output contract, and its artifact.

The graph does no detection: its boxes repeat what it was given, so that tests can read the
inputs and the state from the outside. Row 0 of ``boxes`` holds, in columns 0 to 6: the time
interval, the validity flag, the translation of ``prev_to_current``, the number of frames since
the last reset, and ``m / (255 - m)`` of the images' mean m (infinite for white images). Row 1
begins with the first ten entries of the first camera's ``lidar2img``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from s4d_runtime import Detections, Frame, Pipeline
from s4d_runtime.artifact import (
    Manifest,
    Preprocessing,
    TensorSpec,
    Thresholds,
    write_artifact,
)
from s4d_runtime.nuscenes import DETECTION_NAMES
from s4d_runtime.nuscenes.dataset import CAMERA_ORDER
from s4d_runtime.rig import rig_frames

RAW = (90, 160)  # height, width of the cameras
SIZE = (32, 88)  # network height, width
COUNT = 6  # boxes and temporal slots
CHANNELS = 4

_TYPES = {"uint8": TensorProto.UINT8, "int32": TensorProto.INT32, "float32": TensorProto.FLOAT}


def tiny_manifest(**changes: Any) -> Manifest:
    cameras, t, c, k = len(CAMERA_ORDER), COUNT, CHANNELS, COUNT
    state = {
        "feature": ("float32", (t, c)),
        "anchor": ("float32", (t, 11)),
        "confidence": ("float32", (t,)),
        "track_id": ("int32", (t,)),
        "id_counter": ("int32", (1,)),
    }
    fields: dict[str, Any] = {
        "name": "tiny_echo",
        "created": "2026-01-01T00:00:00Z",
        "versions": {"s4d-runtime": "0.1.0"},
        "model": {"name": "tiny_echo"},
        "class_names": DETECTION_NAMES,
        "preprocessing": Preprocessing(SIZE, "pillow_bicubic", CAMERA_ORDER),
        "inputs": (
            TensorSpec("images", "uint8", (cameras, *SIZE, 3)),
            TensorSpec("lidar2img", "float32", (cameras, 4, 4)),
            TensorSpec("prev_to_current", "float32", (4, 4)),
            TensorSpec("time_interval", "float32", (1,)),
            TensorSpec("state_valid", "int32", (1,)),
            *(TensorSpec(f"state_{n}", d, s) for n, (d, s) in state.items()),
        ),
        "outputs": (
            TensorSpec("boxes", "float32", (k, 10)),
            TensorSpec("scores", "float32", (k,)),
            TensorSpec("labels", "int32", (k,)),
            TensorSpec("track_ids", "int32", (k,)),
            *(TensorSpec(f"next_{n}", d, s) for n, (d, s) in state.items()),
        ),
        "state": {f"state_{n}": f"next_{n}" for n in state},
        "thresholds": Thresholds(),
        "precision": "fp32",
        "op": "standard",
        "opset": 20,
    }
    return Manifest(**{**fields, **changes})


def tiny_onnx(manifest: Manifest | None = None) -> bytes:
    manifest = manifest or tiny_manifest()
    inits: list[Any] = []

    def const(name: str, value: Any, dtype: Any) -> str:
        inits.append(numpy_helper.from_array(np.array(value, dtype=dtype), name))
        return name

    nodes = []

    def op(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def flat(name: str, start: int, stop: int, output: str) -> str:
        op("Reshape", [name, const(f"{output}_s", [-1], np.int64)], f"{output}_f")
        bounds = [const(f"{output}_{i}", [v], np.int64) for i, v in enumerate((start, stop))]
        return op("Slice", [f"{output}_f", *bounds], output)

    one_f, zero_f = const("one_f", [1], np.float32), const("zero_f", [0], np.float32)
    zero_i = const("zero_i", [0], np.int32)
    valid = op("Cast", ["state_valid"], "valid", to=TensorProto.BOOL)
    old = op("Where", [valid, "state_confidence", zero_f], "old")
    op("Add", [old, one_f], "next_confidence")
    op("Add", ["state_feature", one_f], "next_feature")
    op("Add", ["state_anchor", zero_f], "next_anchor")
    base = op("Where", [valid, "state_id_counter", zero_i], "base")
    op("Add", [base, const("step", [COUNT], np.int32)], "next_id_counter")
    fresh = op("Add", [base, const("range", range(COUNT), np.int32)], "fresh")
    op("Where", [valid, "state_track_id", fresh], "track_ids")
    op("Add", ["track_ids", zero_i], "next_track_id")
    pixels = op("Cast", ["images"], "pixels", to=TensorProto.FLOAT)
    mean = op("Reshape", [op("ReduceMean", [pixels], "m0", keepdims=0), "one"], "mean")
    const("one", [1], np.int64)
    rest = op("Sub", [const("white", [255], np.float32), mean], "rest")
    parts = [
        "time_interval",
        op("Cast", ["state_valid"], "valid_f", to=TensorProto.FLOAT),
        *(flat("prev_to_current", i, i + 1, f"t{i}") for i in (3, 7, 11)),
        flat("next_confidence", 0, 1, "frames"),
        op("Div", [mean, rest], "odds"),
        const("pad", [0, 0, 0], np.float32),
        flat("lidar2img", 0, 10, "projection"),
        const("others", np.tile([5, 5, 0, 4, 2, 1.5, 0.3, 1, 0, 0], COUNT - 2), np.float32),
    ]
    op("Concat", parts, "all", axis=0)
    # A reshaped output would be copied in a way that ONNX Runtime cannot record as a CUDA graph.
    op("Reshape", ["all", const("shape", [COUNT, 10], np.int64)], "rows")
    op("Add", ["rows", zero_f], "boxes")
    zeros = op("Mul", ["state_confidence", zero_f], "zero_scores")
    op("Add", [zeros, const("s", np.linspace(0.9, 0.1, COUNT), np.float32)], "scores")
    zeros = op("Mul", ["state_track_id", zero_i], "zero_labels")
    op("Add", [zeros, const("l", range(COUNT), np.int32)], "labels")

    def infos(specs: tuple[TensorSpec, ...]) -> list[Any]:
        return [helper.make_tensor_value_info(t.name, _TYPES[t.dtype], t.shape) for t in specs]

    graph = helper.make_graph(nodes, "echo", infos(manifest.inputs), infos(manifest.outputs), inits)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def tiny_artifact(path: Path, **changes: Any) -> Path:
    manifest = tiny_manifest(**changes)
    return write_artifact(path, manifest, {"model.onnx": tiny_onnx()})


def load(artifact: Path, **options: Any) -> Pipeline:
    return Pipeline.load(artifact, threads=1, **options)


def stream_of(pipeline: Pipeline, seed: int = 0) -> Iterator[Frame]:
    """Sound frames, half a second apart."""
    return rig_frames(pipeline.manifest, RAW, interval=0.5, seed=seed)


def echo(detections: Detections) -> dict[str, Any]:
    """What the graph was given."""
    row = detections.boxes[0]
    return {"dt": row[0], "valid": row[1], "moved": row[2:5], "count": row[5]}
