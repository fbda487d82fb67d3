"""`compile_inference`: a model made ready to run frame after frame as fast as it can."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map

from ..decode import Detections, select
from ..errors import InvalidInputError
from ..model import Sparse4D
from ..observation import step
from ..state import State
from .frame import Frame
from .fusion import fuse_map_steps, image_graph, widen_input
from .images import ImageInput, NormalisedImages, RawImages
from .precision import cast_at_boundaries, is_half, to_half, use_tf32

__all__ = ["CompiledModel", "compile_inference"]

Precision = Literal["fp32", "tf32", "fp16"]
_WARM_UP = 3  # frames before a graph is captured: kernels are chosen and compiled in them


class CompiledModel:
    """A model with fixed memory that turns one frame after the other into detections.

    Made by `compile_inference`. It carries the state itself, on the device. Not for several
    threads at once; make one per stream of frames.

    Attributes:
        config: the model's.
        batch_size: B.
        precision: "fp32", "tf32" or "fp16".
        resize: what happens to raw images, `s4d_ops.image.ResizeCrop`, or None without raw images.
            `resize.matrix` maps raw pixels to network pixels.
    """

    def __init__(self, frame: Frame, precision: Precision, graph: bool) -> None:
        self._frame = frame
        self.config = frame.model.config
        self.batch_size = frame.batch
        self.precision = precision
        self.resize = getattr(frame.images, "plan", None)
        self._device = frame.bank.feature.device
        self._on_gpu = self._device.type == "cuda"
        self._stream = torch.cuda.Stream(self._device) if self._on_gpu else None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._past = torch.zeros(self.batch_size, dtype=torch.bool)
        self._timestamp = torch.zeros(self.batch_size, dtype=torch.float64)
        self._pose = torch.eye(4, dtype=torch.float64).repeat(self.batch_size, 1, 1)
        self._warm_up(_WARM_UP if self._on_gpu else 1)
        if graph:
            self._capture()
        self.reset()

    @torch.no_grad()
    def __call__(
        self, images: Any, lidar2img: Any, timestamp: Any, lidar2global: Any
    ) -> list[Detections]:
        """One frame of every sample.

        Args:
            images: as said to `compile_inference`: (B, N, 3, H, W) normalised floats, or B * N raw
                uint8 images (H, W, 3) RGB, samples one after another, as a list or as one array.
                numpy arrays or tensors of the host or of the device; the host's upload fastest
                from pinned memory.
            lidar2img: (B, N, 4, 4) to pixels of the network input.
            timestamp: (B,) seconds.
            lidar2global: (B, 4, 4).

        Returns:
            as `decode`, on the host.

        Raises:
            InvalidInputError: shapes that do not belong to what was built.
        """
        frame, batch = self._frame, self.batch_size
        stamps = self._host("timestamp", timestamp, (batch,))
        pose = self._host("lidar2global", lidar2global, (batch, 4, 4))
        matrices = self._host("lidar2img", lidar2img, (batch, self.config.num_cameras, 4, 4))
        state = State(replace(frame.bank, valid=self._past), self._timestamp, self._pose)
        transform, interval = step(state, stamps, pose)
        geometry = frame.geometry
        geometry.lidar2img.copy_(matrices)
        geometry.prev_to_current.copy_(transform)
        geometry.time_interval.copy_(interval)
        geometry.valid.copy_(self._past)
        with self._context():
            frame.images.load(images)
            if self._graph is not None:
                self._graph.replay()
            else:
                with use_tf32(self.precision == "tf32"):
                    frame.run()
        self._wait()
        self._past.fill_(True)
        self._timestamp, self._pose = stamps, pose
        return select(frame.detections(), self.config)

    def reset(self, where: Tensor | None = None) -> None:
        """Forget the past: the next frame is a first frame.

        Args:
            where: (B,) bool, which samples; None: all, and ids start again at 0.
        """
        if where is None:
            self._past.fill_(False)
            self._frame.bank.id_counter.zero_()
            self._wait()
        else:
            self._past &= ~where.cpu()

    @property
    def state(self) -> State:
        """A copy of what is carried to the next frame, on the device."""
        bank = tree_map(torch.clone, self._frame.bank)
        bank = replace(bank, valid=self._past.clone().to(self._device))
        return State(bank, self._timestamp.clone(), self._pose.clone())

    @state.setter
    def state(self, state: State) -> None:
        old, new = tree_leaves(self._frame.bank), tree_leaves(state.bank)
        shapes = [tuple(x.shape) for x in old]
        if shapes != [tuple(x.shape) for x in new]:
            raise InvalidInputError(
                f"expected a state of this model with batch size {self.batch_size}, tensors of "
                f"{shapes}, got {[tuple(x.shape) for x in new]}"
            )
        for target, value in zip(old, new, strict=True):
            target.copy_(value)
        self._past = state.bank.valid.cpu().clone()
        self._timestamp = state.timestamp.cpu().clone()
        self._pose = state.lidar2global.cpu().clone()
        self._wait()

    def _host(self, name: str, value: Any, shape: tuple[int, ...]) -> Tensor:
        given = torch.as_tensor(value)
        if tuple(given.shape) != shape:
            raise InvalidInputError(f"expected {name} {shape}, got {tuple(given.shape)}")
        # A copy: the caller may reuse its array, and this is compared with the next frame's.
        return given.to("cpu", torch.float64, copy=True)

    def _context(self) -> AbstractContextManager:
        """The own stream, ordered after the caller's work on images."""
        if self._stream is None:
            return nullcontext()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        return torch.cuda.stream(self._stream)

    def _wait(self) -> None:
        if self._stream is not None:
            torch.cuda.current_stream(self._device).synchronize()
            self._stream.synchronize()

    @torch.no_grad()
    def _warm_up(self, count: int) -> None:
        self._frame.geometry.lidar2img.copy_(torch.eye(4))
        self._frame.geometry.prev_to_current.copy_(torch.eye(4))
        with self._context(), use_tf32(self.precision == "tf32"):
            for _ in range(count):
                self._frame.run()
        self._wait()

    @torch.no_grad()
    def _capture(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        with (
            use_tf32(self.precision == "tf32"),
            torch.cuda.graph(self._graph, stream=self._stream),
        ):
            self._frame.run()


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
            in float32. "fp32": no TF32 anywhere. "tf32": float32 with TF32 products on CUDA.
        raw_size: (H, W) of the camera images that calls will bring, as uint8; None: calls bring
            normalised images of network size.
        device: where to run; None: where the model is.
        graph: whether to capture a CUDA graph; None: if on CUDA.
        inductor: compile the head with `torch.compile` (a minute or more at the first use).

    Raises:
        InvalidInputError: a graph is asked for without CUDA, or an unknown precision.
    """
    if precision not in ("fp32", "tf32", "fp16"):
        raise InvalidInputError(f"expected precision fp32, tf32 or fp16, got {precision!r}")
    target = torch.device(device) if device is not None else model.spatial_shapes.device
    on_gpu = target.type == "cuda"
    if graph and not on_gpu:
        raise InvalidInputError(f"expected a CUDA device for graph=True, got {target}")
    config, half = model.config, precision == "fp16"
    copied = copy.deepcopy(model).eval().requires_grad_(False).to(target).float()
    count = batch_size * config.num_cameras
    with torch.no_grad(), use_tf32(False):
        example = torch.zeros((count, 3, *config.image.size), device=target)
        image_part = image_graph(copied, example, fuse_relu=True)
    like, channels = example[:0], 3
    if half:
        to_half(copied)
        if is_half("backbone") and is_half("neck"):
            image_part.half()
            like = like.half()
        if on_gpu:
            channels = 8
            widen_input(image_part, channels)
    if half:
        image_part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for name in ("backbone", "neck"):  # their memory
        setattr(copied, name, torch.nn.Identity())
    if on_gpu:
        _use_triton(copied, image_part)
    cast_at_boundaries(copied)
    images: ImageInput
    if raw_size is None:
        images = NormalisedImages(batch_size, config, like, channels, half)
    else:
        images = RawImages(batch_size, config, raw_size, like, channels, half)
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = _as_is
    if inductor:
        wrap = _inductor
    frame = Frame(copied, image_part, images, batch_size, wrap)
    return CompiledModel(frame, precision, on_gpu if graph is None else graph)


def _use_triton(model: Sparse4D, image_part: fx.GraphModule) -> None:
    """Kernels for many small steps. Triton comes with torch for CUDA on Linux."""
    try:
        from .fused_mlp import fuse_small_networks
        from .fused_sampling import fuse_aggregation
    except ImportError:
        return
    fuse_map_steps(image_part)
    if model.head.depth_reweight is None:
        fuse_aggregation(model)
    fuse_small_networks(model)


def _as_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _inductor(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, dynamic=False)
