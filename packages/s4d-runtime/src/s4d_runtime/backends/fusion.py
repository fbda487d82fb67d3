"""What ONNX Runtime's CUDA provider is given: the graph with operators that s4d-ops fuses."""

from __future__ import annotations

import logging
from typing import NamedTuple

from ..errors import BackendError, OnnxFileError
from .fused_chains import DOMAIN, fuse_chains
from .fused_convolutions import fuse_convolutions
from .onnx_edit import EditableModel
from .split_convolutions import split_convolutions
from .split_linear import split_linear_layers

__all__ = ["FusedModel", "fuse_model"]

log = logging.getLogger("s4d_runtime")


class FusedModel(NamedTuple):
    """A model, what was fused in it, and how many convolutions were not.

    ``products``: convolutions and linear layers in split products.
    """

    model: bytes
    convolutions: int = 0
    chains: int = 0
    others: int = 0
    products: int = 0


def fuse_model(model: bytes, fp32x3: bool = False) -> FusedModel:
    """The model with fused operators, or the model itself where nothing fits.

    Args:
        fp32x3: float32 convolutions and linear layers as sums of half-precision products, see
            `split_convolutions`; not in graphs with half-precision convolutions.

    Raises:
        BackendError: the graph is not sound, or its rewriting has a fault. The engine may still
            take the graph as it is, or say what is wrong with it.
    """
    try:
        return _fused(model, fp32x3)
    # What a graph that is not sound leads to.
    except (
        OnnxFileError,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        StopIteration,
    ) as error:
        log.debug("operators of a graph could not be fused", exc_info=True)
        raise BackendError(
            f"its operators could not be fused ({type(error).__name__}: {error})"
        ) from error


def _fused(model: bytes, fp32x3: bool) -> FusedModel:
    graph = EditableModel(model)
    if any(node.has_graph for node in graph.nodes):
        return FusedModel(model)  # inner graphs read tensors without naming them as inputs
    chains = fuse_chains(graph)
    convolutions = fuse_convolutions(graph)
    products = 0
    if fp32x3 and not convolutions:
        convolutions = split_convolutions(graph)
        products = convolutions + split_linear_layers(graph)
    if not (chains or convolutions or products):
        return FusedModel(model)
    others = sum(node.op_type == "Conv" for node in graph.nodes)
    return FusedModel(graph.encode(DOMAIN), convolutions, chains, others, products)
