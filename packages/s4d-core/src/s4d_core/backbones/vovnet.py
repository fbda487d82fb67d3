"""VoVNetV2 (Lee and Park, 2020, "CenterMask"): a block joins the outputs of all its layers."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import relu6

from .base import Backbone
from .config import VoVNetConfig

__all__ = ["VoVNet"]


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
            norm=nn.BatchNorm2d(out_channels),
            relu=nn.ReLU(inplace=True),
        )
    )


class ChannelAttention(nn.Module):
    """Effective squeeze and excitation: channels weighed by their means, by one linear layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        score = self.fc(x.mean((2, 3), keepdim=True))
        return x * (relu6(score + 3) / 6)


class Block(nn.Module):
    """3x3 convolutions in a row; their outputs and the input joined by a 1x1 convolution."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        layers: int,
        attention: bool,
        residual: bool,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.layers = nn.ModuleList(
            _conv(in_channels if i == 0 else width, width, 3) for i in range(layers)
        )
        self.concat = _conv(in_channels + layers * width, out_channels, 1)
        self.attention = ChannelAttention(out_channels) if attention else None

    def forward(self, x: Tensor) -> Tensor:
        outputs = [x]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        out = self.concat(torch.cat(outputs, dim=1))
        if self.attention is not None:
            out = self.attention(out)
        return out + x if self.residual else out


class VoVNet(Backbone):
    """Images to four feature maps at strides 4, 8, 16 and 32."""

    def __init__(self, config: VoVNetConfig) -> None:
        super().__init__()
        self.config = config
        first, second, channels = config.stem_channels
        self.stem = nn.Sequential(
            _conv(3, first, 3, 2), _conv(first, second, 3), _conv(second, channels, 3, 2)
        )
        self.stages = nn.ModuleList()
        for width, out_channels, count in zip(
            config.widths, config.out_channels, config.blocks, strict=True
        ):
            stage = nn.Sequential()
            for i in range(count):
                attention = config.attention == "every" or i == count - 1
                stage.append(Block(channels, width, out_channels, config.layers, attention, i > 0))
                channels = out_channels
            self.stages.append(stage)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.checkpointing = config.checkpointing
        frozen: list[nn.Module] = []
        if config.frozen_stages >= 0:
            frozen = [self.stem, *self.stages[: config.frozen_stages]]
        self.fix(frozen, config.norm_eval)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(K, 3, H, W) to maps (K, C_i, H_i, W_i), sizes as in `config.level_sizes`."""
        x = self.stem(images)
        outputs = []
        for i, stage in enumerate(self.stages):
            if i > 0:
                x = self.pool(x)
            for block in stage:  # type: ignore[attr-defined]
                x = self.run(block, x)
            outputs.append(x)
        return outputs

    def init_weights(self) -> None:
        """He initialisation (normal, fan in), as DD3D does."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
