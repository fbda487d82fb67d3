"""Inputs and outputs of an exported graph: names, order, types, shapes (batch 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from s4d_core import BankState, Sparse4DConfig
from s4d_runtime.artifact import TensorSpec

__all__ = ["BOX_COLUMNS", "GraphContract", "graph_contract", "looks_ahead"]

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
    """The contract of a model with these sizes.

    N cameras of H x W pixels, T carried instances of C channels, K boxes by falling score; in
    models that sample other frames, Q feature maps of F rows. See ``s4d_core`` for the meaning of
    the state: ``BankState`` and ``FeatureQueue``.
    """
    cameras, (height, width) = config.num_cameras, config.image.size
    count = config.num_output
    state = _state(config)
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


def looks_ahead(config: Sparse4DConfig) -> bool:
    """Does the graph detect on an earlier frame than the one that it is given?"""
    return config.queue is not None and config.queue.frames == "future"


def _state(config: Sparse4DConfig) -> dict[str, tuple[DType, tuple[int, ...]]]:
    carried, channels = config.num_temporal, config.embed_dims
    state: dict[str, tuple[DType, tuple[int, ...]]] = {}
    if carried:
        state |= {
            "feature": ("float32", (carried, channels)),
            "anchor": ("float32", (carried, STATE_COLUMNS)),
            "confidence": ("float32", (carried,)),
            "track_id": ("int32", (carried,)),
            "id_counter": ("int32", (1,)),
        }
    if config.queue is not None:
        length, moments = config.queue.length, config.queue.length + looks_ahead(config)
        empty = BankState.empty(config, 1, "meta", delayed=looks_ahead(config)).queue
        assert empty is not None
        state |= {
            "maps": ("float32", (length, empty.maps.shape[2], channels)),
            "lidar2img": ("float32", (length, config.num_cameras, 4, 4)),
            "from_newest": ("float32", (moments, 4, 4)),
            "age": ("float32", (moments,)),
            "filled": ("int32", (moments,)),
        }
    return state
