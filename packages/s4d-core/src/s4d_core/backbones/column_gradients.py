"""Gradients of bilinear reading at given positions, for deformable convolution.

That of grid_sample takes the slope of offsets on either side of a whole pixel, as rounding falls,
and all offsets start at zero. Both of these take the slope towards larger coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Gradients", "indexed_gradients", "native_gradients"]

Gradients = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of x, y, x_pos and mask of `deform_conv.read_columns`."""


def native_gradients(x: Tensor, y: Tensor, x_pos: Tensor, mask: Tensor, grad: Tensor) -> Gradients:
    """By the backward pass of the aggregation operator: one sample of one map for each position.

    The operator leaves out what is half a pixel or more outside a map. So the map gets a frame of
    zeros, and sides that are powers of two, with which positions stay exact.
    """
    from s4d_ops import torch as _loads_the_operator  # noqa: F401

    batch, channels, height, width = x.shape
    rows, columns = (1 << (size + 1).bit_length() for size in (height, width))
    framed = x.new_zeros(batch, rows, columns, channels)
    framed[:, 1 : height + 1, 1 : width + 1] = x.permute(0, 2, 3, 1)
    wide = torch.promote_types(x_pos.dtype, torch.float32)
    where = torch.stack(((x_pos.to(wide) + 1.5) / columns, (y.to(wide) + 1.5) / rows), dim=-1)
    # Filled on the device: a copy from the host would wait for it.
    table = torch.zeros(3, dtype=torch.int64, device=x.device)
    table[0].fill_(rows)
    table[1].fill_(columns)
    of_map, of_place, of_mask = torch.ops.s4d.deformable_aggregation_backward(
        grad.transpose(1, 2).contiguous(),
        framed.flatten(1, 2),
        table[:2].view(1, 1, 2),
        table[2:].view(1, 1),
        where[:, :, None, None],
        mask.to(wide)[..., None, None, None, None],
        True,
        True,
        True,
        torch.are_deterministic_algorithms_enabled(),
    )
    of_map = of_map.view(batch, rows, columns, channels)[:, 1 : height + 1, 1 : width + 1]
    of_place = of_place.flatten(1, 3).to(y.dtype)
    of_y, of_x = of_place[..., 1] / rows, of_place[..., 0] / columns
    return of_map.permute(0, 3, 1, 2).contiguous(), of_y, of_x, of_mask.flatten(1).to(mask.dtype)


def indexed_gradients(x: Tensor, y: Tensor, x_pos: Tensor, mask: Tensor, grad: Tensor) -> Gradients:
    """The same with torch operations, for any device."""
    batch, channels, height, width = x.shape
    wide = torch.promote_types(x_pos.dtype, torch.float32)
    pixels = x.to(wide).flatten(2).transpose(1, 2).reshape(-1, channels)  # (B * H * W, C)
    grad_pixels = torch.zeros_like(pixels)
    grad_rows = grad.to(wide).transpose(1, 2).reshape(-1, channels)  # (B * P, C)
    first = torch.arange(batch, device=x.device)[:, None] * (height * width)
    low_y, low_x = y.floor(), x_pos.floor()
    # Positions that are not finite are outside, and their shares must not make zeros nan.
    share_y, share_x = (y - low_y).nan_to_num(0.0), (x_pos - low_x).nan_to_num(0.0)
    grad_y, grad_x, grad_mask = (torch.zeros_like(mask) for _ in range(3))
    for down in (0, 1):
        for right in (0, 1):
            iy, ix = low_y + down, low_x + right
            weight_y = share_y if down else 1 - share_y
            weight_x = share_x if right else 1 - share_x
            inside = (iy >= 0) & (iy < height) & (ix >= 0) & (ix < width)
            index = first + (iy * width + ix).where(inside, 0).long()
            weight = (weight_y * weight_x).where(inside, 0)
            index = index.flatten()
            # The pixel's value along the incoming gradient: all that its scalars need.
            along = (pixels[index] * grad_rows).sum(1).view_as(mask).where(inside, 0)
            grad_mask += weight * along
            grad_y += (along if down else -along) * weight_x
            grad_x += (along if right else -along) * weight_y
            grad_pixels.index_add_(0, index, grad_rows * (weight * mask).reshape(-1, 1))
    grad_image = grad_pixels.view(batch, height * width, channels).transpose(1, 2)
    return grad_image.reshape(x.shape).to(x.dtype), grad_y * mask, grad_x * mask, grad_mask
