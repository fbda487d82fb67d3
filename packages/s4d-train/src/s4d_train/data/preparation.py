"""From the batch's uint8 images to the network's input, on the batch's device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .batch import Batch

__all__ = ["ImagePreparation", "apply_photometric", "grid_mask"]


class ImagePreparation(nn.Module):
    """Colour augmentation, normalisation and GridMask.

    What happens is decided by the batch's ``photometric`` and ``grid_mask`` parameters; in
    evaluation they are neutral and only the normalisation is left; ``augment=False`` skips the
    work.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        mean: Sequence[float] = (123.675, 116.28, 103.53),
        std: Sequence[float] = (58.395, 57.12, 57.375),
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, batch: Batch, augment: bool = True) -> torch.Tensor:
        """(B, N, 3, H, W) float32, normalised."""
        images = batch.images.permute(0, 1, 4, 2, 3).float()
        if augment:
            images = apply_photometric(images, batch.photometric)
        images = (images - self.mean) / self.std
        if augment:
            images = images * grid_mask(batch.grid_mask, images.shape[-2:])[:, None, None]
        return images


def apply_photometric(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Change colours of RGB images (..., 3, H, W) in 0..255 by parameters (..., 8).

    Brightness is added first. Contrast multiplies before or after the colour change. Saturation
    and hue are those of HSV: with V = max and C = V - min, scaling the saturation is
    V - s (V - rgb), and a hue shift evaluates V - C clip(min(k, 4 - k), 0, 1) with
    k = (n + h) mod 6, n = 5, 3, 1 (the closed form of the HSV hexagon). Results are not clipped,
    as in the published recipe.
    """
    p = parameters[..., None, None, None]
    brightness, contrast, late, saturation, hue = (p[..., i, :, :, :] for i in range(5))
    one = torch.ones_like(contrast)
    images = (images + brightness) * torch.where(late > 0, one, contrast)

    high = images.amax(-3, keepdim=True)
    low = images.amin(-3, keepdim=True)
    chroma = high - low
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    red, green, blue = images.split(1, -3)
    sector = torch.where(
        high == red,
        (green - blue) / safe,
        torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    # 5, 3, 1 made on the device: a copy from the host would wait for it.
    offsets = 5 - 2 * torch.arange(3, device=images.device, dtype=images.dtype)
    k = torch.remainder(offsets.view(3, 1, 1) + sector + hue / 60, 6)
    shape = torch.minimum(k, 4 - k).clamp(0, 1)
    images = high - saturation * chroma * shape

    images = images * torch.where(late > 0, contrast, one)
    order = parameters[..., 5:8].long()[..., None, None].expand(images.shape)
    return images.gather(-3, order)


def grid_mask(parameters: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(B, H, W) of 0 and 1 from parameters (B, 5): squares of a regular grid are 0.

    Rows and columns ``[offset, offset + kept)`` of every period are kept whole (GridMask, Chen et
    al. 2020, inverted mode as in the published recipe).
    """
    on, period, kept, row, column = (v[:, None] for v in parameters.unbind(-1))
    y = torch.arange(size[0], device=parameters.device, dtype=parameters.dtype)
    x = torch.arange(size[1], device=parameters.device, dtype=parameters.dtype)
    keep_y = torch.remainder(y - row, period) < kept
    keep_x = torch.remainder(x - column, period) < kept
    keep = keep_y[:, :, None] | keep_x[:, None, :] | (on == 0)[:, :, None]
    return keep.to(parameters.dtype)
