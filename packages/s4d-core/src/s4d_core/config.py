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
from .errors import ConfigError
from .strict import from_plain, to_plain

__all__ = [
    "CAMERA_NAMES",
    "CLASS_NAMES",
    "AggregationConfig",
    "AnchorEncoderConfig",
    "DecoderConfig",
    "DepthConfig",
    "FPNConfig",
    "ImageConfig",
    "ResNetConfig",
    "Sparse4DConfig",
]

CLASS_NAMES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
CAMERA_NAMES = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)
# Centre of the box and the centres of its six faces, moved inwards; factors of the box size.
FACE_POINTS = (
    (0.0, 0.0, 0.0),
    (0.45, 0.0, 0.0),
    (-0.45, 0.0, 0.0),
    (0.0, 0.45, 0.0),
    (0.0, -0.45, 0.0),
    (0.0, 0.0, 0.45),
    (0.0, 0.0, -0.45),
)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class ImageConfig:
    """Network input of every camera.

    Attributes:
        size: (height, width) in pixels.
        mean, std: of RGB values 0..255; the network sees (rgb - mean) / std.
        resize_filter: the filter with which training images were shrunk. Another one moves
            results (REFERENCE 0.5), so it belongs to the weights.
    """

    size: tuple[int, int] = (256, 704)
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    resize_filter: Literal["pillow_bicubic", "pillow_bilinear", "cv2_linear"] = "pillow_bicubic"

    def __post_init__(self) -> None:
        _require(min(self.size) > 0, f"image.size: expected positive (H, W), got {self.size}")
        _require(min(self.std) > 0, f"image.std: expected positive values, got {self.std}")


@dataclass(frozen=True)
class FPNConfig:
    """Feature pyramid: one output per backbone stage, all with `embed_dims` channels."""

    num_levels: int = 4

    def __post_init__(self) -> None:
        _require(
            1 <= self.num_levels <= 4,
            f"neck.num_levels: expected 1..4 (the backbone's stages), got {self.num_levels}",
        )


@dataclass(frozen=True)
class DepthConfig:
    """Auxiliary dense depth, used in training only.

    Attributes:
        num_levels: how many of the finest pyramid levels predict depth.
        reference_focal: focal length in pixels at which exp(output) is the depth in metres.
    """

    num_levels: int = 3
    reference_focal: float = 100.0


@dataclass(frozen=True)
class AnchorEncoderConfig:
    """How an 11-column box becomes an embedding.

    Attributes:
        mode: "cat" joins the branches (their widths sum to `embed_dims`); "add" sums branches of
            width `embed_dims` each.
        dims: widths of the position, size, yaw and velocity branch.
        blocks: (Linear, ReLU, LayerNorm) blocks per branch.
        output_layer: one more pair of such blocks after joining.
    """

    mode: Literal["cat", "add"] = "cat"
    dims: tuple[int, int, int, int] = (128, 32, 32, 64)
    blocks: int = 4
    output_layer: bool = False


@dataclass(frozen=True)
class DecoderConfig:
    """The stack of decoders.

    Attributes:
        num_layers: decoders in all.
        num_single_frame: how many of them come before the past is merged in.
        num_heads: attention heads.
        decoupled: attention on [feature | anchor embedding] of twice the width; otherwise the
            embedding is added to queries and keys.
        ffn_channels: hidden width of the feed-forward network.
        dropout: of attention weights, of the attention output and of the feed-forward network.
    """

    num_layers: int = 6
    num_single_frame: int = 1
    num_heads: int = 8
    decoupled: bool = True
    ffn_channels: int = 1024
    dropout: float = 0.1

    def __post_init__(self) -> None:
        _require(
            1 <= self.num_single_frame < self.num_layers,
            f"decoder.num_single_frame: expected 1..{self.num_layers - 1} (fewer than "
            f"num_layers), got {self.num_single_frame}",
        )
        _require(0 <= self.dropout < 1, f"decoder.dropout: expected 0..1, got {self.dropout}")


@dataclass(frozen=True)
class AggregationConfig:
    """Sampling of image features at key points.

    Attributes:
        num_groups: channel groups with weights of their own.
        fixed_points: start values of the fixed key points, factors of the box size. Weights of a
            checkpoint replace them.
        num_learned_points: key points that a linear layer places inside the box.
        dropout: share of (camera, point) entries dropped in training.
    """

    num_groups: int = 8
    fixed_points: tuple[tuple[float, float, float], ...] = FACE_POINTS
    num_learned_points: int = 6
    dropout: float = 0.15

    def __post_init__(self) -> None:
        _require(0 <= self.dropout < 1, f"aggregation.dropout: expected 0..1, got {self.dropout}")

    @property
    def num_points(self) -> int:
        """Key points per box."""
        return len(self.fixed_points) + self.num_learned_points


@dataclass(frozen=True)
class Sparse4DConfig:
    """Everything that `Sparse4D` is built from, and what its weights mean.

    Attributes:
        name: of the model; a label, nothing is derived from it.
        embed_dims: channels of pyramid features, instances and anchor embeddings.
        class_names, camera_names: in the order of logits and of camera inputs.
        num_anchors: instances per frame.
        num_temporal: instances carried to the next frame.
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

    def __post_init__(self) -> None:
        dims, heads, groups = self.embed_dims, self.decoder.num_heads, self.aggregation.num_groups
        _require(dims % groups == 0, f"embed_dims {dims} is not a multiple of {groups} groups")
        width = 2 * dims if self.decoder.decoupled else dims
        _require(width % heads == 0, f"attention width {width} is not a multiple of {heads} heads")
        encoder = self.anchor_encoder
        if encoder.mode == "cat":
            total = sum(encoder.dims)
            _require(
                total == dims, f"anchor_encoder.dims sum to {total}, expected embed_dims {dims}"
            )
        else:
            _require(
                set(encoder.dims) == {dims},
                f"anchor_encoder.dims: mode 'add' needs four times {dims}, got {encoder.dims}",
            )
        _require(
            0 < self.num_temporal < self.num_anchors,
            f"num_temporal: expected 1..{self.num_anchors - 1}, got {self.num_temporal}",
        )
        _require(
            0 < self.num_output <= self.num_anchors,
            f"num_output: expected 1..{self.num_anchors} (num_anchors), got {self.num_output}",
        )
        _require(len(self.class_names) > 0, "class_names: expected at least one name")
        _require(len(self.camera_names) > 0, "camera_names: expected at least one name")
        if self.depth is not None:
            _require(
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
