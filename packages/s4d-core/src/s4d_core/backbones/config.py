"""What each backbone is built from.

A configuration names its kind, so that a saved one can be read back: `kind` is the first field,
and a saved backbone without one is a ResNet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..errors import ConfigError
from .timm_models import feature_channels, feature_sizes

__all__ = ["BackboneConfig", "EvaConfig", "ResNetConfig", "TimmConfig", "VoVNetConfig"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class ResNetConfig:
    """A residual network with four stages at strides 4, 8, 16 and 32.

    Attributes:
        block: "bottleneck" (output is 4 x width) or "basic" (output is width).
        layers: blocks per stage.
        widths: width of each stage's 3x3 convolutions.
        stem_channels: output of the 7x7 stem.
        frozen_stages: -1 none, 0 the stem, k the stem and stages 1..k: not trained, and their
            BatchNorm uses running statistics.
        norm_eval: BatchNorm uses running statistics in training too.
        checkpointing: recompute each block in backward instead of keeping its activations.
        style: where a bottleneck with a stride has it: "pytorch" in the 3x3 convolution, "caffe"
            in the first 1x1.
        deformable: stages whose 3x3 convolutions are deformable (bottlenecks only).
    """

    block: Literal["bottleneck", "basic"] = "bottleneck"
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    stem_channels: int = 64
    frozen_stages: int = -1
    norm_eval: bool = False
    checkpointing: bool = False
    style: Literal["pytorch", "caffe"] = "pytorch"
    deformable: tuple[bool, bool, bool, bool] = (False, False, False, False)
    kind: Literal["resnet"] = "resnet"

    def __post_init__(self) -> None:
        _require(
            self.block == "bottleneck" or not any(self.deformable),
            "backbone.deformable: needs backbone.block 'bottleneck', got 'basic'",
        )
        _require(min(self.layers) >= 1, f"backbone.layers: at least 1 each, got {self.layers}")
        _require(min(self.widths) >= 1, f"backbone.widths: at least 1 each, got {self.widths}")
        _require(
            -1 <= self.frozen_stages <= 4,
            f"backbone.frozen_stages: expected -1..4, got {self.frozen_stages}",
        )

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the four outputs."""
        factor = 4 if self.block == "bottleneck" else 1
        return tuple(width * factor for width in self.widths)

    def level_sizes(self, image_size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """(height, width) of the four outputs: every halving rounds up."""
        height, width = image_size
        height, width = (height + 1) // 2, (width + 1) // 2  # the stem
        sizes = []
        for _ in self.layers:
            height, width = (height + 1) // 2, (width + 1) // 2
            sizes.append((height, width))
        return tuple(sizes)


@dataclass(frozen=True)
class VoVNetConfig:
    """VoVNetV2 (Lee and Park, 2020), with four stages at strides 4, 8, 16 and 32.

    The defaults are VoVNet-99 as DD3D has it ("V-99-eSE").

    Attributes:
        stem_channels: of the three 3x3 convolutions before the first stage.
        widths: of each stage's 3x3 convolutions.
        out_channels: of each stage.
        layers: 3x3 convolutions per block.
        blocks: per stage.
        attention: which blocks of a stage weigh their channels (eSE): "every" as in DD3D, or
            the "last" one as in timm.
        frozen_stages, norm_eval, checkpointing: as in `ResNetConfig`.
    """

    stem_channels: tuple[int, int, int] = (64, 64, 128)
    widths: tuple[int, int, int, int] = (128, 160, 192, 224)
    out_channels: tuple[int, int, int, int] = (256, 512, 768, 1024)
    layers: int = 5
    blocks: tuple[int, int, int, int] = (1, 3, 9, 3)
    attention: Literal["every", "last"] = "every"
    frozen_stages: int = -1
    norm_eval: bool = False
    checkpointing: bool = False
    kind: Literal["vovnet"] = "vovnet"

    def __post_init__(self) -> None:
        sizes = (*self.stem_channels, *self.widths, *self.out_channels, *self.blocks, self.layers)
        _require(min(sizes) >= 1, "backbone: every width and count must be at least 1")
        _require(
            -1 <= self.frozen_stages <= 4,
            f"backbone.frozen_stages: expected -1..4, got {self.frozen_stages}",
        )

    def level_sizes(self, image_size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """(height, width) of the four outputs: strided convolutions round up, pooling down."""
        _require(min(image_size) >= 29, f"backbone: images of {image_size} are too small")
        height, width = ((n + 3) // 4 for n in image_size)
        return tuple((height >> i, width >> i) for i in range(4))


@dataclass(frozen=True)
class EvaConfig:
    """EVA-02 (Fang et al., 2023): a plain ViT with rotary positions, and ViTDet's pyramid on it.

    The defaults are EVA02-L as its detectors use it: patches of 16 pixels, most blocks look at
    windows of 16 x 16 patches, every third at the whole image.

    Attributes:
        patch_size: pixels; image sides must be multiples of it.
        width, depth, num_heads: of the transformer.
        hidden: width of the gated feed-forward layers (SwiGLU).
        position_grid: patches (rows, columns) of the learned position embedding. It is resampled
            to the image at hand.
        rotary_grid: patches per side to which rotary positions are scaled, the grid of
            pre-training.
        window_size: patches per side of a window.
        global_blocks: blocks that look at the whole image.
        drop_path: chance to skip the last block in training; earlier ones in proportion.
        pyramid_channels: channels of the four outputs at strides 1/4, 1/2, 1 and 2 patches;
            None: one output, the transformer's own map.
        checkpointing: recompute each block in backward instead of keeping its activations.
    """

    patch_size: int = 16
    width: int = 1024
    depth: int = 24
    num_heads: int = 16
    hidden: int = 2730
    position_grid: tuple[int, int] = (16, 16)
    rotary_grid: int = 16
    window_size: int = 16
    global_blocks: tuple[int, ...] = (2, 5, 8, 11, 14, 17, 20, 23)
    drop_path: float = 0.3
    pyramid_channels: int | None = 256
    checkpointing: bool = True
    kind: Literal["eva"] = "eva"

    def __post_init__(self) -> None:
        _require(
            self.width % (4 * self.num_heads) == 0,
            f"backbone.width: expected a multiple of 4 x num_heads ({4 * self.num_heads}), got "
            f"{self.width}",
        )
        _require(self.window_size >= 1, "backbone.window_size: expected at least 1")
        _require(0 <= self.drop_path < 1, "backbone.drop_path: expected 0..1")
        _require(
            all(0 <= i < self.depth for i in self.global_blocks),
            f"backbone.global_blocks: expected 0..{self.depth - 1}, got {self.global_blocks}",
        )

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the outputs."""
        return (self.width,) if self.pyramid_channels is None else (self.pyramid_channels,) * 4

    def level_sizes(self, image_size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """(height, width) of the outputs."""
        patch = self.patch_size
        _require(
            image_size[0] % patch == 0 and image_size[1] % patch == 0,
            f"image.size: expected multiples of backbone.patch_size {patch}, got {image_size}",
        )
        height, width = image_size[0] // patch, image_size[1] // patch
        if self.pyramid_channels is None:
            return ((height, width),)
        return (
            (4 * height, 4 * width),
            (2 * height, 2 * width),
            (height, width),
            (height // 2, width // 2),
        )


@dataclass(frozen=True)
class TimmConfig:
    """A feature-extracting model of timm, by name; needs the extra `s4d-core[timm]`.

    `timm_config` fills it in.

    Attributes:
        name: timm's.
        out_indices: which of its feature maps to use, fine to coarse; negative: from the last.
        pretrained: new models start with the weights that timm publishes (a download).
        image_size: (height, width) of models that are made for one size; None: any size.
        norm_eval, checkpointing: as in `ResNetConfig`.
    """

    name: str
    out_indices: tuple[int, ...] = (-4, -3, -2, -1)
    pretrained: bool = False
    image_size: tuple[int, int] | None = None
    norm_eval: bool = False
    checkpointing: bool = False
    kind: Literal["timm"] = "timm"

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the outputs.

        Raises:
            ConfigError: timm is not installed or does not have this model.
        """
        return feature_channels(self.name, self.out_indices, self.image_size)

    def level_sizes(self, image_size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """(height, width) of the outputs."""
        return feature_sizes(self.name, self.out_indices, self.image_size, image_size)


BackboneConfig: TypeAlias = ResNetConfig | VoVNetConfig | EvaConfig | TimmConfig
