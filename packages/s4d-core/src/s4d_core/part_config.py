"""What the parts of a model around its backbone are built from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .errors import ConfigError

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
    "require",
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


def require(condition: bool, message: str) -> None:
    """Raise a `ConfigError` with `message` where `condition` does not hold."""
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
        require(min(self.size) > 0, f"image.size: expected positive (H, W), got {self.size}")
        require(min(self.std) > 0, f"image.std: expected positive values, got {self.std}")


@dataclass(frozen=True)
class FPNConfig:
    """Feature pyramid: `num_levels` maps with `embed_dims` channels.

    Attributes:
        num_levels: outputs. Where the backbone has fewer maps from `start_level` on, each further
            output is a convolution of stride 2 on the one before.
        start_level: the first backbone map that is used.
    """

    num_levels: int = 4
    start_level: int = 0

    def __post_init__(self) -> None:
        require(self.num_levels >= 1, f"neck.num_levels: expected 1 or more, got {self.num_levels}")
        require(
            self.start_level >= 0, f"neck.start_level: expected 0 or more, got {self.start_level}"
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
class DepthReweightConfig:
    """Point features weighted by how well they fit the distance of their box (REFERENCE C6).

    Attributes:
        min_depth, max_depth, interval: bins of distance in metres, both ends included.
        blocks: residual networks before the classification into bins.
    """

    min_depth: float = 1.0
    max_depth: float = 56.0
    interval: float = 5.0
    blocks: int = 2

    def __post_init__(self) -> None:
        require(
            0 < self.interval <= self.max_depth - self.min_depth,
            "depth_reweight: expected at least two bins, got "
            f"{self.min_depth}..{self.max_depth} m in steps of {self.interval}",
        )

    @property
    def num_bins(self) -> int:
        """Number of bins."""
        return int((self.max_depth - self.min_depth) / self.interval + 1e-6) + 1


@dataclass(frozen=True)
class QueueConfig:
    """Feature maps of other frames, sampled beside those of the current one (REFERENCE C4, C5).

    Attributes:
        length: frames besides the current one.
        frames: "past": frames that the state holds; "future": frames that the caller gives,
            for work on recordings.
        decay: a frame that is 1 / rate seconds away counts with this factor.
        rate: per second.
    """

    length: int = 3
    frames: Literal["past", "future"] = "past"
    decay: float = 0.9
    rate: float = 10.0

    def __post_init__(self) -> None:
        require(self.length >= 1, f"queue.length: expected 1 or more, got {self.length}")
        require(0 < self.decay <= 1, f"queue.decay: expected 0..1, got {self.decay}")


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
        num_single_frame: how many of them come before the past is merged in; all of them in a
            model that carries no instances.
        num_heads: attention heads.
        decoupled: attention on [feature | anchor embedding] of twice the width; otherwise the
            embedding is added to queries and keys.
        first_attention: the first decoder too begins with attention among instances.
        ffn: "asymmetric" takes [aggregated | feature] and has a linear shortcut; "residual" takes
            their normalised sum and adds it to its result.
        ffn_channels: hidden width of the feed-forward network.
        dropout: of attention weights, of the attention output and of the feed-forward network.
    """

    num_layers: int = 6
    num_single_frame: int = 1
    num_heads: int = 8
    decoupled: bool = True
    first_attention: bool = False
    ffn: Literal["asymmetric", "residual"] = "asymmetric"
    ffn_channels: int = 1024
    dropout: float = 0.1

    def __post_init__(self) -> None:
        require(
            1 <= self.num_single_frame <= self.num_layers,
            f"decoder.num_single_frame: expected 1..{self.num_layers} (num_layers), got "
            f"{self.num_single_frame}",
        )
        require(0 <= self.dropout < 1, f"decoder.dropout: expected 0..1, got {self.dropout}")


@dataclass(frozen=True)
class AggregationConfig:
    """Sampling of image features at key points.

    Attributes:
        num_groups: channel groups with weights of their own.
        fixed_points: start values of the fixed key points, factors of the box size.
        stored_points: the fixed points are a frozen weight, and a checkpoint replaces them;
            otherwise they are constants of the configuration.
        num_learned_points: key points that a linear layer places inside the box.
        camera_embedding: weights of a camera are computed from its projection matrix; otherwise
            every instance predicts weights for each camera by its place in the list.
        border: a point outside an image gives nothing ("skip"); or the image goes on with zeros
            and still gives something half a pixel outside ("zeros", grid_sample's rule).
        dropout: share of (camera, point) entries dropped in training.
        output_dropout: of the aggregated features, in training.
    """

    num_groups: int = 8
    fixed_points: tuple[tuple[float, float, float], ...] = FACE_POINTS
    stored_points: bool = True
    num_learned_points: int = 6
    camera_embedding: bool = True
    border: Literal["skip", "zeros"] = "skip"
    dropout: float = 0.15
    output_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("dropout", "output_dropout"):
            value = getattr(self, name)
            require(0 <= value < 1, f"aggregation.{name}: expected 0..1, got {value}")

    @property
    def num_points(self) -> int:
        """Key points per box."""
        return len(self.fixed_points) + self.num_learned_points
