"""Sparse convolution layers. Cross-correlation; weights ``(out, k0, k1, k2, in)``.

Each layer has two hooks for quantisation-aware training, both None by default:
``input_quantizer`` is applied to the features and ``weight_quantizer`` to the weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from s4d_ops import sparse_torch

from ..errors import InvalidInputError
from .tensor import Sites, SparseTensor, StridedLink, triple

__all__ = ["InverseConv3d", "SparseConv3d", "SubmanifoldConv3d"]

Quantizer = Callable[[Tensor], Tensor]


class _Convolution(nn.Module):
    """Parameters and quantisation hooks that the three kinds share."""

    bias: nn.Parameter | None
    input_quantizer: Quantizer | None
    weight_quantizer: Quantizer | None

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int | Sequence[int], bias: bool
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = triple(kernel_size, "kernel_size")
        self.weight = nn.Parameter(torch.empty(out_channels, *self.kernel_size, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.input_quantizer = None
        self.weight_quantizer = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As torch's convolutions: uniform within 1 / sqrt(inputs of one output)."""
        bound = 1 / math.sqrt(self.in_channels * math.prod(self.kernel_size))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def _operands(self, x: SparseTensor) -> tuple[Tensor, Tensor]:
        if x.features.shape[1] != self.in_channels:
            raise InvalidInputError(
                f"expected {self.in_channels} feature channels, got {x.features.shape[1]}"
            )
        features: Tensor = x.features
        weight: Tensor = self.weight
        if self.input_quantizer is not None:
            features = self.input_quantizer(features)
        if self.weight_quantizer is not None:
            weight = self.weight_quantizer(weight)
        return features, weight

    def extra_repr(self) -> str:
        bias = "" if self.bias is not None else ", bias=False"
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}{bias}"


class SubmanifoldConv3d(_Convolution):
    """Convolution whose output sites are its input sites.

    The input of offset k lies at ``site + (k - kernel // 2) * dilation``; kernel sizes are odd.
    All layers on the same sites with the same kernel and dilation share one rulebook.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        dilation: int | Sequence[int] = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, bias)
        self.dilation = triple(dilation, "dilation")

    def forward(self, x: SparseTensor) -> SparseTensor:
        """(V, in) to (V, out) on the same sites."""
        features, weight = self._operands(x)
        book = x.sites.submanifold_rulebook(self.kernel_size, self.dilation)
        return x.replace(sparse_torch.convolution(features, weight, book, self.bias))


class SparseConv3d(_Convolution):
    """Strided convolution: ``input = output * stride - padding + k * dilation``.

    An output site exists where at least one active input falls into its window. Output rows are
    sorted. With ``key``, an :class:`InverseConv3d` of the same key can go back.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        bias: bool = True,
        key: str | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, bias)
        self.stride = triple(stride, "stride")
        self.padding = triple(padding, "padding")
        self.dilation = triple(dilation, "dilation")
        self.key = key

    def forward(self, x: SparseTensor) -> SparseTensor:
        """(V, in) to (M, out) on the output grid.

        Raises:
            InvalidInputError: the key was used before in this network, or bad index rows.
        """
        features, weight = self._operands(x)
        book = sparse_torch.strided_rulebook(
            x.indices, x.grid_shape, x.batch_size, self.kernel_size, self.stride, self.padding,
            self.dilation,
        )  # fmt: skip
        target = Sites(book.out_indices, book.out_shape, x.batch_size)
        if self.key is not None:
            if self.key in x.links:
                raise InvalidInputError(f"the key {self.key!r} is used by another convolution")
            x.links[self.key] = StridedLink(x.sites, target, book)
        out = sparse_torch.convolution(features, weight, book, self.bias)
        return x.replace(out, target)


class InverseConv3d(_Convolution):
    """The way back over a :class:`SparseConv3d`: from its output sites to its input sites.

    Uses the same pairs, offset by offset (spconv's SparseInverseConv3d), so the sites before the
    strided convolution, and their rulebooks, come back.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        key: str,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, bias)
        self.key = key

    def forward(self, x: SparseTensor) -> SparseTensor:
        """(M, in) to (V, out) on the sites before the convolution of the same key.

        Raises:
            InvalidInputError: no such convolution ran before, or ``x`` is not on its output sites.
        """
        link = x.links.get(self.key)
        if link is None:
            raise InvalidInputError(
                f"no convolution with key {self.key!r} ran before; known: {sorted(x.links)}"
            )
        if x.sites is not link.target:
            raise InvalidInputError(
                f"the features do not lie on the output sites of convolution {self.key!r}"
            )
        if link.rulebook.table.shape[0] != math.prod(self.kernel_size):
            raise InvalidInputError(
                f"expected the kernel size of convolution {self.key!r}, got {self.kernel_size}"
            )
        features, weight = self._operands(x)
        out = sparse_torch.convolution(features, weight, link.rulebook, self.bias, inverse=True)
        return x.replace(out, link.source)
