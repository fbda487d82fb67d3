"""The sparse encoder of CenterPoint (SpMiddleResNetFHD, "SCN") and of BEVFusion."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import SparseEncoderConfig, encoder_config
from .conv import Quantizer, SparseConv3d, SubmanifoldConv3d
from .tensor import SparseTensor

__all__ = ["ConvBlock", "ResidualBlock", "SparseEncoder", "build_encoder"]


def _norm(config: SparseEncoderConfig, channels: int) -> nn.Module:
    return nn.BatchNorm1d(channels, eps=config.norm_eps, momentum=config.norm_momentum)


class ConvBlock(nn.Module):
    """Convolution, normalisation, ReLU."""

    def __init__(self, conv: SubmanifoldConv3d | SparseConv3d, norm: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm

    def forward(self, x: SparseTensor) -> SparseTensor:
        x = self.conv(x)
        return x.replace(torch.relu(self.norm(x.features)))


class ResidualBlock(nn.Module):
    """``relu(norm2(conv2(relu(norm1(conv1 x)))) + x)``, both convolutions submanifold.

    ``add_quantizers`` (None, or one quantiser per operand) act on the two sides of the sum.
    """

    add_quantizers: tuple[Quantizer, Quantizer] | None

    def __init__(self, config: SparseEncoderConfig, channels: int) -> None:
        super().__init__()
        self.conv1 = SubmanifoldConv3d(channels, channels, 3, bias=config.block_bias)
        self.norm1 = _norm(config, channels)
        self.conv2 = SubmanifoldConv3d(channels, channels, 3, bias=config.block_bias)
        self.norm2 = _norm(config, channels)
        self.add_quantizers = None

    def forward(self, x: SparseTensor) -> SparseTensor:
        y = self.conv1(x)
        y = y.replace(torch.relu(self.norm1(y.features)))
        y = self.conv2(y)
        left, right = self.norm2(y.features), x.features
        if self.add_quantizers is not None:
            left, right = self.add_quantizers[0](left), self.add_quantizers[1](right)
        return y.replace(torch.relu(left + right))


class Stage(nn.Module):
    """An optional strided convolution, then residual blocks."""

    def __init__(self, down: ConvBlock | None, blocks: list[ResidualBlock]) -> None:
        super().__init__()
        self.down = down
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: SparseTensor) -> SparseTensor:
        if self.down is not None:
            x = self.down(x)
        for block in self.blocks:
            x = block(x)
        return x


class SparseEncoder(nn.Module):
    """Voxels to a bird's-eye feature map.

    For the CenterPoint config: 79 745 voxels on (41, 1440, 1440) to (1, 256, 180, 180). The depth
    must leave something after the strides (41 -> 21 -> 11 -> 5 -> 2).

    Args:
        config: see :class:`SparseEncoderConfig`.
    """

    def __init__(self, config: SparseEncoderConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.stem = ConvBlock(
            SubmanifoldConv3d(config.in_channels, widths[0], 3, bias=False),
            _norm(config, widths[0]),
        )
        self.stages = nn.ModuleList()
        for index, width in enumerate(widths):
            down = None
            if index:
                padding = config.ordered(config.down_padding[index - 1])
                conv = SparseConv3d(widths[index - 1], width, 3, 2, padding, bias=False)
                down = ConvBlock(conv, _norm(config, width))
            blocks = [ResidualBlock(config, width) for _ in range(config.blocks)]
            self.stages.append(Stage(down, blocks))
        last = SparseConv3d(
            widths[-1],
            config.out_channels,
            config.ordered((3, 1, 1)),
            config.ordered((2, 1, 1)),
            bias=False,
        )
        self.out = ConvBlock(last, _norm(config, config.out_channels))

    def encode(self, x: SparseTensor) -> list[SparseTensor]:
        """The stem's and the stages' outputs and, last, the sparse map before the scatter."""
        outputs = [self.stem(x)]
        for stage in self.stages:
            outputs.append(stage(outputs[-1]))
        outputs.append(self.out(outputs[-1]))
        return outputs

    def to_bev(self, x: SparseTensor) -> Tensor:
        """(B, C * D, H, W), channel number ``c * D + z``."""
        dense = x.dense(self.config.axis_order)
        return dense.flatten(1, 2)

    def forward(self, features: Tensor, indices: Tensor, batch_size: int = 1) -> Tensor:
        """Encode one batch.

        Args:
            features: (V, in_channels), the mean of each voxel's points.
            indices: (V, 4) integers, batch and three axes in the config's index order.

        Returns:
            (B, C * D, H, W).

        Raises:
            InvalidInputError: a voxel outside the grid or twice, or another number of channels.
        """
        x = SparseTensor(features, indices, self.config.grid_shape, batch_size)
        return self.to_bev(self.encode(x)[-1])


def build_encoder(config: str | SparseEncoderConfig) -> SparseEncoder:
    """A randomly initialised encoder, by name (see ``list_encoders``) or config."""
    return SparseEncoder(encoder_config(config) if isinstance(config, str) else config)
