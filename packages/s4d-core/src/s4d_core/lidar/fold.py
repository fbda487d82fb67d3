"""Batch normalisation folded into the convolution before it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..errors import InvalidInputError
from .conv import _Convolution
from .encoder import ConvBlock, ResidualBlock, SparseEncoder

__all__ = ["fold_batchnorm"]


def _fold(conv: _Convolution, norm: nn.Module) -> None:
    """``g = gamma / sqrt(var + eps)``; weight ``W g``, bias ``(b - mean) g + beta``, in float64."""
    if isinstance(norm, nn.Identity):
        return
    if not isinstance(norm, nn.BatchNorm1d) or norm.running_mean is None:
        raise InvalidInputError(f"cannot fold a {type(norm).__name__} into a convolution")
    assert norm.running_var is not None
    weight = conv.weight.detach().double()
    bias: Tensor | float = 0.0 if conv.bias is None else conv.bias.detach().double()
    gain = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
    shift = (bias - norm.running_mean.double()) * gain + norm.bias.detach().double()
    conv.weight = nn.Parameter((weight * gain[:, None, None, None, None]).to(conv.weight.dtype))
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype))


def fold_batchnorm(encoder: SparseEncoder) -> SparseEncoder:
    """A copy in eval mode whose convolutions carry the normalisation as weight and bias.

    Gives the outputs of ``encoder.eval()`` up to rounding; folding twice changes nothing.
    """
    folded = copy.deepcopy(encoder).eval()
    for module in folded.modules():
        if isinstance(module, ConvBlock):
            _fold(module.conv, module.norm)
            module.norm = nn.Identity()
        elif isinstance(module, ResidualBlock):
            _fold(module.conv1, module.norm1)
            _fold(module.conv2, module.norm2)
            module.norm1, module.norm2 = nn.Identity(), nn.Identity()
    return folded
