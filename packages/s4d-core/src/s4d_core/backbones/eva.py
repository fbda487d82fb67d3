"""EVA-02 (Fang et al., 2023): ViT with rotary positions, SwiGLU and window attention (ViTDet)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention, silu

from .base import Backbone
from .config import EvaConfig
from .simple_pyramid import SimplePyramid

__all__ = ["Eva"]

NORM_EPS = 1e-6


def rotary_table(size: tuple[int, int], head_dim: int, grid: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (H * W, head_dim) of rotary positions in two dimensions.

    The first half of a head turns with the row, the second with the column, neighbouring
    channels in pairs. Positions are scaled so that `size` spans the `grid` of pre-training.
    """
    pairs = head_dim // 4
    frequency = 10000.0 ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
    angles = []
    for count in size:
        position = torch.arange(count, dtype=torch.float64) / count * grid
        angles.append((position[:, None] * frequency).repeat_interleave(2, dim=1))
    rows, columns = angles
    table = torch.cat(
        (
            rows[:, None].expand(-1, size[1], -1),
            columns[None].expand(size[0], -1, -1),
        ),
        dim=-1,
    ).flatten(0, 1)
    return table.cos(), table.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn channel pairs (2i, 2i + 1) of x (..., tokens, channels) by the table's angles."""
    even, odd = x[..., 0::2], x[..., 1::2]
    quarter = torch.stack((-odd, even), dim=-1).flatten(-2)
    return (x * cosine + quarter * sine).to(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention over tokens (K, T, C); keys have no bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.q, self.k, self.v)
        )
        out = scaled_dot_product_attention(rotate(q, *table), rotate(k, *table), v)
        return self.proj(out.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """Gated feed-forward network (Shazeer, 2020) with a LayerNorm inside."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden)
        self.value = nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden, NORM_EPS)
        self.output = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.norm(silu(self.gate(x)) * self.value(x)))


class Block(nn.Module):
    """Attention, in windows or over the whole image, and SwiGLU, on tokens (K, H, W, C)."""

    def __init__(self, config: EvaConfig, index: int) -> None:
        super().__init__()
        self.window = 0 if index in config.global_blocks else config.window_size
        self.drop = config.drop_path * index / max(config.depth - 1, 1)
        self.norm1 = nn.LayerNorm(config.width, NORM_EPS)
        self.attention = Attention(config.width, config.num_heads)
        self.norm2 = nn.LayerNorm(config.width, NORM_EPS)
        self.mlp = SwiGLU(config.width, config.hidden)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """(K, H, W, C), and rotary positions of a window or of the image."""
        x = x + self._dropped(self._attend(self.norm1(x), table))
        return x + self._dropped(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        batch, height, width, channels = x.shape
        size = (self.window, self.window) if self.window else (height, width)
        down, right = -height % size[0], -width % size[1]
        # Windows over the edge are filled with zeros, which take part: as in ViTDet.
        x = pad(x, (0, 0, 0, right, 0, down))
        rows, columns = (height + down) // size[0], (width + right) // size[1]
        x = x.reshape(batch, rows, size[0], columns, size[1], channels).transpose(2, 3)
        x = x.reshape(batch * rows * columns, size[0] * size[1], channels)
        x = self.attention(x, table)
        x = x.reshape(batch, rows, columns, size[0], size[1], channels).transpose(2, 3)
        return x.reshape(batch, height + down, width + right, channels)[:, :height, :width]

    def _dropped(self, x: Tensor) -> Tensor:
        """Stochastic depth (Huang et al., 2016), image by image."""
        if not self.training or self.drop == 0:
            return x
        kept = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= self.drop
        return x * (kept / (1 - self.drop)).to(x.dtype)


class Eva(Backbone):
    """Images to feature maps at strides 4, 8, 16 and 32 (for patches of 16 pixels)."""

    window_cosine: Tensor
    window_sine: Tensor
    global_cosine: Tensor
    global_sine: Tensor

    def __init__(self, config: EvaConfig) -> None:
        super().__init__()
        self.config = config
        rows, columns = config.position_grid
        self.patch = nn.Conv2d(3, config.width, config.patch_size, config.patch_size)
        self.position = nn.Parameter(torch.zeros(1, config.width, rows, columns))
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.depth))
        self.pyramid = None
        if config.pyramid_channels is not None:
            self.pyramid = SimplePyramid(config.width, config.pyramid_channels)
        self.checkpointing = config.checkpointing
        self.make_tables((rows * config.patch_size, columns * config.patch_size))

    def make_tables(self, image_size: tuple[int, int]) -> None:
        patch, window = self.config.patch_size, self.config.window_size
        self._size = (image_size[0] // patch, image_size[1] // patch)
        sizes = {"window": (window, window), "global": self._size}
        for name, size in sizes.items():
            cosine, sine = self._table(size)
            self.register_buffer(f"{name}_cosine", cosine, persistent=False)
            self.register_buffer(f"{name}_sine", sine, persistent=False)

    def _table(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        head_dim = self.config.width // self.config.num_heads
        cosine, sine = rotary_table(size, head_dim, self.config.rotary_grid)
        return cosine.to(torch.get_default_dtype()), sine.to(torch.get_default_dtype())

    def forward(self, images: Tensor) -> list[Tensor]:
        """(K, 3, H, W) to maps (K, C_i, H_i, W_i), sizes as in `config.level_sizes`."""
        x = self.patch(images)
        size = (x.shape[-2], x.shape[-1])
        position: Tensor = self.position
        if position.shape[-2:] != size:
            position = interpolate(position, size, mode="bicubic", align_corners=False)
        whole = (self.global_cosine, self.global_sine)
        if size != self._size:
            cosine, sine = self._table(size)
            whole = (cosine.to(whole[0]), sine.to(whole[1]))
        windows = (self.window_cosine, self.window_sine)
        x = (x + position).permute(0, 2, 3, 1)
        for block in self.blocks:
            x = self.run(block, x, windows if block.window else whole)
        x = x.permute(0, 3, 1, 2)
        return [x] if self.pyramid is None else self.pyramid(x)

    def init_weights(self) -> None:
        """Normal with 0.02, cut at two deviations; biases zero, as ViTDet does."""
        nn.init.trunc_normal_(self.position, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
