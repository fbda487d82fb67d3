"""What a Sparse4D model is: sizes, and the meaning of its weights.

A configuration travels with the weights (`config.json` beside `model.safetensors`). It holds what
cannot be read from tensor shapes, above all the switches that decide whether the same weights
mean the same boxes: `refine_yaw`, `legacy_yaw_order`, `score_order`, `image.resize_filter`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .backbones.config import BackboneConfig, ResNetConfig
from .part_config import (
    CAMERA_NAMES,
    CLASS_NAMES,
    AggregationConfig,
    AnchorEncoderConfig,
    DecoderConfig,
    DepthConfig,
    DepthReweightConfig,
    FPNConfig,
    ImageConfig,
    QueueConfig,
    require,
)
from .strict import from_plain, to_plain

__all__ = [
    "CAMERA_NAMES",
    "CLASS_NAMES",
    "AggregationConfig",
    "AnchorEncoderConfig",
    "DecoderConfig",
    "DepthConfig",
    "DepthReweightConfig",
    "FPNConfig",
    "ImageConfig",
    "QueueConfig",
    "ResNetConfig",
    "Sparse4DConfig",
]


@dataclass(frozen=True)
class Sparse4DConfig:
    """Everything that `Sparse4D` is built from, and what its weights mean.

    Attributes:
        name: of the model; a label, nothing is derived from it.
        embed_dims: channels of pyramid features, instances and anchor embeddings.
        class_names, camera_names: in the order of logits and of camera inputs.
        num_anchors: instances per frame.
        num_temporal: instances carried to the next frame; 0: none, and no ids.
        num_output: boxes after decoding.
        max_time_interval: seconds; a larger step is a gap, the past is not merged in.
        default_time_interval: seconds; stands in for the time step where there is no usable past.
        confidence_decay: factor on a carried instance's confidence per frame.
        legacy_yaw_order: projecting an anchor writes (cos, sin) into columns (sin, cos), as every
            published v3 checkpoint was trained (REFERENCE 0.3).
        refine_yaw: True: refinement adds its output to the anchor's (sin, cos). False: it
            predicts them absolutely (REFERENCE 0.4).
        score_order: order of `Detections.class_scores`: "reference" leaves them sorted by class
            score while boxes are sorted by fused score, as the published tracking figures
            expect; "aligned" keeps each score with its box (REFERENCE 0.11).
        score_threshold: detections with a lower class score are dropped by `decode`; None: none.
        track_threshold: only instances with a class score of at least this get a new id; None:
            all do.
        quality: predict centerness and yawness; scores are then class score x centerness.
        decode_classes: "best": a box has its best class; "all": every pair of box and class
            competes, and a box may come out under several classes.
        learned_features: the start features of instances are trained; otherwise they stay zero.
        refine_interval: seconds by which refinement divides: "elapsed" since the previous frame,
            or always the "default" one.
        queue: sample feature maps of other frames too; None: of the current frame only.
        depth_reweight: weigh point features by distance; None: do not.
    """

    name: str
    embed_dims: int = 256
    image: ImageConfig = field(default_factory=ImageConfig)
    backbone: BackboneConfig = field(default_factory=ResNetConfig)
    neck: FPNConfig = field(default_factory=FPNConfig)
    depth: DepthConfig | None = field(default_factory=DepthConfig)
    anchor_encoder: AnchorEncoderConfig = field(default_factory=AnchorEncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    class_names: tuple[str, ...] = CLASS_NAMES
    camera_names: tuple[str, ...] = CAMERA_NAMES
    num_anchors: int = 900
    num_temporal: int = 600
    num_output: int = 300
    max_time_interval: float = 2.0
    default_time_interval: float = 0.5
    confidence_decay: float = 0.6
    legacy_yaw_order: bool = True
    refine_yaw: bool = True
    score_order: Literal["reference", "aligned"] = "reference"
    score_threshold: float | None = None
    track_threshold: float | None = None
    quality: bool = True
    decode_classes: Literal["best", "all"] = "best"
    learned_features: bool = False
    refine_interval: Literal["elapsed", "default"] = "elapsed"
    queue: QueueConfig | None = None
    depth_reweight: DepthReweightConfig | None = None

    def __post_init__(self) -> None:
        dims, heads, groups = self.embed_dims, self.decoder.num_heads, self.aggregation.num_groups
        require(dims % groups == 0, f"embed_dims {dims} is not a multiple of {groups} groups")
        width = 2 * dims if self.decoder.decoupled else dims
        require(width % heads == 0, f"attention width {width} is not a multiple of {heads} heads")
        encoder = self.anchor_encoder
        if encoder.mode == "cat":
            total = sum(encoder.dims)
            require(
                total == dims, f"anchor_encoder.dims sum to {total}, expected embed_dims {dims}"
            )
        else:
            require(
                set(encoder.dims) == {dims},
                f"anchor_encoder.dims: mode 'add' needs four times {dims}, got {encoder.dims}",
            )
        require(
            0 <= self.num_temporal < self.num_anchors,
            f"num_temporal: expected 0..{self.num_anchors - 1}, got {self.num_temporal}",
        )
        single, layers = self.decoder.num_single_frame, self.decoder.num_layers
        require(
            (self.num_temporal == 0) == (single == layers),
            f"decoder.num_single_frame: expected fewer than num_layers {layers} with carried "
            f"instances and {layers} without, got {single} with num_temporal {self.num_temporal}",
        )
        maps = len(self.backbone.out_channels)
        require(
            self.neck.start_level < maps,
            f"neck.start_level: expected 0..{maps - 1} (the backbone's maps), got "
            f"{self.neck.start_level}",
        )
        require(len(self.class_names) > 0, "class_names: expected at least one name")
        most = self.num_anchors * (len(self.class_names) if self.decode_classes == "all" else 1)
        require(
            0 < self.num_output <= most,
            f"num_output: expected 1..{most} (what num_anchors allow), got {self.num_output}",
        )
        require(len(self.camera_names) > 0, "camera_names: expected at least one name")
        if self.depth is not None:
            require(
                0 < self.depth.num_levels <= self.neck.num_levels,
                f"depth.num_levels: expected 1..{self.neck.num_levels}",
            )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def num_cameras(self) -> int:
        """Number of cameras."""
        return len(self.camera_names)

    @property
    def level_sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of the pyramid's maps."""
        neck = self.neck
        sizes = list(self.backbone.level_sizes(self.image.size)[neck.start_level :])
        while len(sizes) < neck.num_levels:
            height, width = sizes[-1]
            sizes.append(((height + 1) // 2, (width + 1) // 2))
        return tuple(sizes[: neck.num_levels])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sparse4DConfig:
        """Read the result of `to_dict`. Unknown fields are errors that suggest the nearest name.

        Raises:
            ConfigError: unknown or missing field, wrong type, impossible value.
        """
        return from_plain(cls, data, "config")

    def replace(self, **changes: Any) -> Sparse4DConfig:
        """A copy with some fields changed, checked again."""
        return replace(self, **changes)
