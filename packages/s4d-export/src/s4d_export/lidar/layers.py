"""A folded encoder as the sequence of layers that the file will hold, with their names."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from s4d_core.lidar import SparseConv3d, SparseEncoder, SubmanifoldConv3d
from s4d_core.lidar.encoder import ConvBlock, ResidualBlock

from ..errors import ExportError

__all__ = ["AddLayer", "ConvLayer", "Layer", "encoder_layers", "first_block"]


@dataclass(frozen=True)
class ConvLayer:
    """One convolution: ``conv0`` and so on in order, its module's name, what follows it."""

    name: str
    module: str
    conv: SubmanifoldConv3d | SparseConv3d
    rulebook: str  # "" for strided convolutions
    relu: bool


@dataclass(frozen=True)
class AddLayer:
    """The sum at the end of residual block ``module``, followed by a ReLU."""

    name: str
    module: str
    block: ResidualBlock


Layer = ConvLayer | AddLayer


def encoder_layers(encoder: SparseEncoder) -> list[Layer]:
    """The layers in order.

    Raises:
        ExportError: the encoder still has batch normalisation (``fold_batchnorm`` first).
    """
    layers: list[Layer] = []
    counts = {"conv": 0, "add": 0}

    def number(kind: str) -> str:
        counts[kind] += 1
        return f"{kind}{counts[kind] - 1}"

    def conv(module: str, rulebook: str, relu: bool) -> None:
        layer = encoder.get_submodule(module)
        assert isinstance(layer, (SubmanifoldConv3d, SparseConv3d))
        layers.append(ConvLayer(number("conv"), module, layer, rulebook, relu))

    for norm in encoder.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            raise ExportError("the encoder has batch normalisation; fold it with fold_batchnorm")
    conv("stem.conv", "res0", True)
    for index, stage in enumerate(encoder.stages):
        if isinstance(stage.down, ConvBlock):
            conv(f"stages.{index}.down.conv", "", True)
        blocks = stage.blocks
        assert isinstance(blocks, nn.ModuleList)
        for number_of_block, block in enumerate(blocks):
            assert isinstance(block, ResidualBlock)
            name = f"stages.{index}.blocks.{number_of_block}"
            conv(f"{name}.conv1", f"res{index}", True)
            conv(f"{name}.conv2", f"res{index}", False)
            layers.append(AddLayer(number("add"), name, block))
    conv("out.conv", "", True)
    return layers


def first_block(encoder: SparseEncoder) -> frozenset[str]:
    """Names of the stem and of the first residual block: int8 costs most accuracy there."""
    return frozenset(layer.name for layer in encoder_layers(encoder)[:4])
