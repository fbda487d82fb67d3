"""Inputs and outputs of an exported graph: names, order, types, shapes (batch 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from s4d_core import Sparse4DConfig
from s4d_runtime.artifact import TensorSpec

__all__ = ["BOX_COLUMNS", "GraphContract", "graph_contract"]

DType = Literal["float32", "int32"]
BOX_COLUMNS = 10  # x y z w l h yaw vx vy vz
STATE_COLUMNS = 11  # x y z log_w log_l log_h sin_yaw cos_yaw vx vy vz


@dataclass(frozen=True)
class GraphContract:
    """What a graph takes and gives, and which output feeds which input on the next frame."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    state: dict[str, str]


def graph_contract(config: Sparse4DConfig) -> GraphContract:
    """The contract of the v3 model with these sizes.

    N cameras of H x W pixels, T carried instances of C channels, K boxes by falling score.
    """
    cameras, (height, width) = config.num_cameras, config.image.size
    carried, channels, count = config.num_temporal, config.embed_dims, config.num_output
    state: dict[str, tuple[DType, tuple[int, ...]]] = {
        "feature": ("float32", (carried, channels)),
        "anchor": ("float32", (carried, STATE_COLUMNS)),
        "confidence": ("float32", (carried,)),
        "track_id": ("int32", (carried,)),
        "id_counter": ("int32", (1,)),
    }
    inputs = (
        TensorSpec("images", "uint8", (cameras, height, width, 3)),
        TensorSpec("lidar2img", "float32", (cameras, 4, 4)),
        TensorSpec("prev_to_current", "float32", (4, 4)),
        TensorSpec("time_interval", "float32", (1,)),
        TensorSpec("state_valid", "int32", (1,)),
        *(TensorSpec(f"state_{name}", dtype, shape) for name, (dtype, shape) in state.items()),
    )
    outputs = (
        TensorSpec("boxes", "float32", (count, BOX_COLUMNS)),
        TensorSpec("scores", "float32", (count,)),
        TensorSpec("labels", "int32", (count,)),
        TensorSpec("track_ids", "int32", (count,)),
        *(TensorSpec(f"next_{name}", dtype, shape) for name, (dtype, shape) in state.items()),
    )
    return GraphContract(inputs, outputs, {f"state_{name}": f"next_{name}" for name in state})
