"""A model with fixed memory, running frame after frame."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ..decode import Detections, select
from ..errors import InvalidInputError
from ..observation import step
from ..state import State
from .frame import Frame
from .precision import use_tf32

__all__ = ["CompiledModel", "Precision"]

Precision = Literal["fp32", "fp32x3", "tf32", "fp16"]
_WARM_UP = 3  # frames before a graph is captured: kernels are chosen and compiled in them


class CompiledModel:
    """A model with fixed memory that turns one frame after the other into detections.

    Made by `compile_inference`. It carries the state itself, on the device. Not for several
    threads at once; make one per stream of frames.

    Attributes:
        config: the model's.
        batch_size: B.
        precision: "fp32", "fp32x3", "tf32" or "fp16".
        resize: what happens to raw images, `s4d_ops.image.ResizeCrop`, or None without raw images.
            `resize.matrix` maps raw pixels to network pixels.
        delay: frames by which answers come later than their images: those that a model which looks
            ahead waits for. 0 for all others.
    """

    def __init__(self, frame: Frame, precision: Precision, graph: bool) -> None:
        self._frame = frame
        self.config = frame.model.config
        self.batch_size = frame.batch
        self.precision = precision
        self.resize = getattr(frame.images, "plan", None)
        self.delay = frame.delay
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
            as `decode`, on the host. In a model that looks ahead they are those of the frame
            `delay` calls before, in its own LiDAR frame; a sample's first `delay` calls find
            nothing.

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
                with self._tf32():
                    frame.run()
        self._wait()
        self._past.fill_(True)
        self._timestamp, self._pose = stamps, pose
        found = frame.detections()
        searched = (found.labels[:, 0] >= 0).tolist()
        return [
            one if known else Detections(*(getattr(one, f.name)[:0] for f in fields(one)))
            for one, known in zip(select(found, self.config), searched, strict=True)
        ]

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
        """A copy of what is carried to the next frame, on the device; floats are float32."""
        bank = tree_map(_copy, self._frame.bank)
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

    def _tf32(self) -> AbstractContextManager:
        return use_tf32(self.precision == "tf32")

    def _wait(self) -> None:
        if self._stream is not None:
            torch.cuda.current_stream(self._device).synchronize()
            self._stream.synchronize()

    @torch.no_grad()
    def _warm_up(self, count: int) -> None:
        self._frame.geometry.lidar2img.copy_(torch.eye(4))
        self._frame.geometry.prev_to_current.copy_(torch.eye(4))
        with self._context(), self._tf32():
            for _ in range(count):
                self._frame.run()
        self._wait()
        if self._on_gpu:
            torch.cuda.empty_cache()  # workspaces that were tried

    @torch.no_grad()
    def _capture(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        with (
            self._tf32(),
            torch.cuda.graph(self._graph, stream=self._stream),
        ):
            self._frame.run()


def _copy(value: Tensor) -> Tensor:
    return value.float() if value.dtype == torch.float16 else value.clone()
