"""`compile_inference`: from a model to one that runs as fast as it can."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import fx

from ..errors import InvalidInputError
from ..model import Sparse4D
from .compiled import CompiledModel, Precision
from .frame import Frame
from .fusion import image_graph, widen_input
from .images import ImageInput, NormalisedImages, RawImages
from .precision import cast_at_boundaries, is_half, to_half, use_tf32

__all__ = ["compile_inference"]


def compile_inference(
    model: Sparse4D,
    *,
    batch_size: int = 1,
    precision: Precision = "fp16",
    raw_size: tuple[int, int] | None = None,
    device: torch.device | str | None = None,
    graph: bool | None = None,
    inductor: bool = False,
) -> CompiledModel:
    """Make a model ready for fast inference; the model itself is not changed.

    BatchNorm is folded, convolutions are fused with what follows them and, in half precision, run
    with channels last. On CUDA one graph holds the whole frame: preparation of images, backbone,
    decoders, bank, ids, decoding, and the copy of the results to the host. First frames and later
    ones are the same graph.

    Args:
        model: any mode; its weights are copied.
        batch_size: samples in every call.
        precision: "fp16": the modules of `precision.HALF_MODULES` in half, the rest and all sums
            in float32. "fp32": no TF32 anywhere. "fp32x3": float32 whose products are sums of
            three half products on tensor cores, with float32's accuracy (CUDA, see
            `split_products`). "tf32": one TF32 product.
        raw_size: (H, W) of the camera images that calls will bring, as uint8; None: calls bring
            normalised images of network size.
        device: where to run; None: where the model is.
        graph: whether to capture a CUDA graph; None: if on CUDA.
        inductor: compile the head with `torch.compile` (a minute or more at the first use).

    Raises:
        InvalidInputError: a graph without CUDA, fp32x3 without CUDA and Triton, or an unknown
            precision.
    """
    target = torch.device(device) if device is not None else model.spatial_shapes.device
    on_gpu = target.type == "cuda"
    # Triton comes with torch for CUDA on Linux.
    triton = on_gpu and importlib.util.find_spec("triton") is not None
    _check(precision, target, graph, triton)
    config, half = model.config, precision == "fp16"
    copied = copy.deepcopy(model).eval().requires_grad_(False).to(target).float()
    example = torch.zeros((batch_size * config.num_cameras, 3, *config.image.size), device=target)
    with use_tf32(False):
        image_part = image_graph(copied, example)
    for name in ("backbone", "neck"):  # their memory: the graph has weights of its own
        setattr(copied, name, torch.nn.Identity())
    if half:
        to_half(copied)
    if triton:
        _use_triton(copied, image_part, precision)
    like, channels, last = _prepare_image_part(image_part, precision, on_gpu)
    cast_at_boundaries(copied)
    images: ImageInput
    if raw_size is None:
        images = NormalisedImages(batch_size, config, like.to(target), channels, last)
    else:
        images = RawImages(batch_size, config, raw_size, like.to(target), channels, last)
    wrap = _inductor if inductor else _as_is
    frame = Frame(copied, image_part, images, batch_size, wrap)
    return CompiledModel(frame, precision, on_gpu if graph is None else graph)


def _check(precision: str, target: torch.device, graph: bool | None, triton: bool) -> None:
    if precision not in get_args(Precision):
        raise InvalidInputError(
            f"expected precision to be one of {get_args(Precision)}, got {precision!r}"
        )
    if graph and target.type != "cuda":
        raise InvalidInputError(f"expected a CUDA device for graph=True, got {target}")
    if precision == "fp32x3" and not triton:
        raise InvalidInputError(
            f"precision fp32x3 needs a CUDA device and Triton; {target} has float32: use fp32"
        )


def _prepare_image_part(
    graph: fx.GraphModule, precision: Precision, on_gpu: bool
) -> tuple[torch.Tensor, int, bool]:
    """Types and layout of the convolutions; returns what their input is to be like.

    That is an empty tensor of its type, its channels, and whether channels are last. (Measured on
    an H200: float32 convolutions without TF32 are faster with channels first.)
    """
    last = precision in ("fp16", "fp32x3")
    wanted = {"fp16": 8 if on_gpu else 3, "fp32x3": 4}.get(precision, 3)
    channels = wanted if wanted > 3 and widen_input(graph, wanted) else 3
    dtype = torch.float32
    if precision == "fp16" and is_half("backbone") and is_half("neck"):
        graph.half()
        dtype = torch.float16
    if precision == "fp32x3":
        from .graph_kernels import split_convolutions, split_tokens

        split_convolutions(graph)
        split_tokens(graph)
    if last:
        graph.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return torch.empty(0, dtype=dtype), channels, last


def _use_triton(model: Sparse4D, image_part: fx.GraphModule, precision: Precision) -> None:
    """Kernels for many small steps."""
    from .fused_mlp import fuse_small_networks
    from .fused_sampling import fuse_aggregation
    from .graph_kernels import fuse_map_steps

    fuse_map_steps(image_part)
    if model.head.depth_reweight is None:
        fuse_aggregation(model)
    fuse_small_networks(model)
    if precision == "fp32x3":
        from .split_layers import split_layers

        split_layers(model.head)


def _as_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _inductor(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, dynamic=False)
