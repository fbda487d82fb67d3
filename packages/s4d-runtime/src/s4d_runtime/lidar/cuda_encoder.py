"""Runs a plan on a CUDA device: reserved memory, one graph, the caller's arrays in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from s4d_ops import MissingLibraryError, sparse_cuda

from ..cuda.driver import Device, Event, Stream, cuda_device_problem
from ..errors import DeviceError, FrameError
from .cuda_memory import Results, Staging
from .cuda_program import Inputs
from .cuda_reserve import Reservation
from .cuda_voxels import CudaVoxelizer
from .cuda_weights import DeviceWeights
from .device_tensor import BorrowedStream, DeviceTensor, DeviceView, is_on_device
from .nodes import LidarGraph, Triple
from .plan import make_plan
from .rows import check_shapes
from .voxels import VoxelRules

__all__ = ["CudaEncoder", "cuda_problem"]


def cuda_problem() -> str | None:
    """None where the engine can run on CUDA, else why not."""
    try:
        sparse_cuda.native()
    except MissingLibraryError as error:
        return str(error)
    return cuda_device_problem()


class CudaEncoder:
    """The network of ``graph`` in ``precision`` on one device.

    Memory is reserved for a number of rows at each level of sites, and kept. ``run`` grows it where
    a frame needs more, and repeats the frame; nothing is cut off. ``enqueue`` does not wait:
    ``check`` says afterwards whether all was well.

    One thread at a time may use an encoder. Streams may differ from call to call: a frame waits for
    the one before, since they share the working memory.

    Attributes:
        plan: the steps that run.
        stream: the encoder's own stream.
    """

    def __init__(self, graph: LidarGraph, precision: str, max_voxels: int = 0) -> None:
        self.graph = graph
        self.precision = precision
        self.plan = make_plan(graph, precision)
        self.device = Device()
        self.stream = Stream()
        self._weights = DeviceWeights(graph, self.plan, precision, self.stream)
        self._reservation = Reservation(graph, self.plan, self._weights)
        self._voxelizer = CudaVoxelizer()
        self._staging = Staging(self.device.index)
        self._results = Results(self.device.index)
        self._last: Stream | None = None
        self._done = Event(timing=False)
        if max_voxels:
            self.reserve(max_voxels)

    def reserve(
        self,
        max_voxels: int,
        grid_shape: Sequence[int] | None = None,
        batch_size: int = 1,
        rows: Sequence[int] = (),
    ) -> int:
        """Reserve memory for frames of up to ``max_voxels``; returns the bytes held then.

        Args:
            rows: rows of each level of sites, the input's first. Without it every level gets
                ``max_voxels``: in real clouds each strided convolution leaves fewer sites than it
                finds, in clouds of scattered voxels up to eight times as many.
        """
        self.device.make_current()
        self._reservation.grow([max_voxels, *rows[1:]])
        a, b, c = grid_shape or self.graph.grid_shape
        self._reservation.bound((a, b, c), batch_size, self._last)
        return self.nbytes

    @property
    def nbytes(self) -> int:
        """Device bytes held: weights, working memory, staging, and results not lent out."""
        parts = (self._weights, self._reservation, self._staging, self._results, self._voxelizer)
        return sum(part.nbytes for part in parts)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        return self._weights.nbytes

    def close(self) -> None:
        """Free what can be made again. Results that are still held stay valid."""
        self.device.make_current()
        self._wait()
        self._reservation.close()
        self._staging.clear()
        self._results.clear()

    def run(self, features: Any, indices: Any, grid_shape: Triple, batch_size: int) -> Any:
        """Encode, wait, check. numpy for arrays on the host, else a ``DeviceTensor``.

        Raises:
            FrameError: shapes, types, rows outside the grid or twice, values that are not finite.
        """
        on_device = is_on_device(features)
        if is_on_device(indices) != on_device:
            raise FrameError("expected features and indices on one device")
        while True:
            result = self.enqueue(features, indices, grid_shape, batch_size)
            if self._settle()[0]:
                return result if on_device else result.numpy()

    def run_points(self, clouds: Sequence[Any], rules: VoxelRules) -> Any:
        """Voxelise one cloud per sample and encode them; the host waits at the end only."""
        on_device = is_on_device(clouds[0])
        views = self._clouds(clouds)
        while True:
            means, rows = self._voxelizer.enqueue(views, rules, self.stream)
            check_shapes(means.shape, rows.shape, self.graph.in_channels)
            result = self._frame(
                means, rows, self.graph.grid_shape, len(clouds), self.stream,
                self._voxelizer.count, False, None,
            )  # fmt: skip
            enough = self._voxelizer.settle(self.stream)
            if self._settle()[0] and enough:
                return result if on_device else result.numpy()

    def voxelize(
        self, clouds: Sequence[Any], rules: VoxelRules
    ) -> tuple[DeviceTensor, DeviceTensor, int]:
        """Features (V, C) float32 and index rows (V, 4) on the device, and the batch size."""
        views = self._clouds(clouds)
        features, indices = self._voxelizer.run(views, rules, self._results, self.stream)
        return features, indices, len(clouds)

    def enqueue(
        self,
        features: Any,
        indices: Any,
        grid_shape: Sequence[int] | None = None,
        batch_size: int = 1,
        stream: int | None = None,
        count: int = 0,
        out: Any = None,
        capture: bool = False,
    ) -> DeviceTensor:
        """Put a frame's work on a stream and return without waiting.

        Args:
            features, indices: arrays on the device, read in place when the stream comes to it; or
                on the host, then copied with a wait.
            stream: address of the caller's CUDA stream; default: the encoder's own.
            count: address of an int32 on the device: how many of the rows count. Default: all.
            out: a contiguous device array for the result, of its shape and type. It is the frame's
                from its beginning on.
            capture: the stream is being captured into a CUDA graph by the caller. The launches are
                recorded there; nothing is allocated if a frame of these sizes ran before and
                ``out`` is given. The caller keeps replays from overlapping other frames.

        Returns:
            The map, complete when the stream has come there. DLPack consumers wait by themselves.
            Whoever reads it on another stream holds it until that is done: its memory is used again
            when it is let go.

        Raises:
            FrameError: shapes and types. What only the data shows, ``check`` raises.
        """
        self.device.make_current()
        where = self.stream if stream is None else BorrowedStream(stream)
        rows = self._staging.view(features, "features", where)
        sites = self._staging.view(indices, "indices", where)
        check_shapes(rows.shape, sites.shape, self.graph.in_channels)
        if rows.dtype not in ("float32", "float16") or sites.dtype != "int32":
            raise FrameError(
                "expected floating features (float16 or float32) and int32 indices, got "
                f"{rows.dtype} and {sites.dtype}"
            )
        a, b, c = grid_shape or self.graph.grid_shape
        return self._frame(rows, sites, (a, b, c), batch_size, where, count, capture, out)

    def check(self) -> list[int]:
        """Wait for what was enqueued last; returns its rows by level of sites.

        Raises:
            FrameError: index rows outside the grid or twice, values that are not finite, or more
                sites than were reserved (the map is not valid; they are reserved from then on).
        """
        enough, needed = self._settle()
        if not enough:
            raise FrameError(
                f"the frame needs {needed} rows by level of sites, more than were reserved; they "
                "are from now on, so run it again"
            )
        return needed

    def trace(
        self, features: Any, indices: Any, grid_shape: Triple, batch_size: int, fused: bool
    ) -> dict[str, Any]:
        """The sparse tensors as ``SparseRows`` on the host, and the dense output."""
        from .cuda_trace import trace

        dense = self.run(features, indices, grid_shape, batch_size)
        plan = self.plan if fused else make_plan(self.graph, self.precision, fuse=False)
        weights = DeviceWeights(self.graph, plan, self.precision, self.stream)
        tensors: dict[str, Any] = dict(
            trace(
                self._reservation, plan, weights,
                self._staging.view(features, "features", self.stream),
                self._staging.view(indices, "indices", self.stream), grid_shape, batch_size,
                self.stream,
            )
        )  # fmt: skip
        tensors[self.graph.outputs[0]] = dense.numpy() if is_on_device(dense) else dense
        return tensors

    def _clouds(self, clouds: Sequence[Any]) -> list[DeviceView]:
        self.device.make_current()
        return [
            self._staging.view(cloud, "points", self.stream, str(sample))
            for sample, cloud in enumerate(clouds)
        ]

    def _frame(
        self,
        rows: DeviceView,
        sites: DeviceView,
        grid: Triple,
        batch_size: int,
        stream: Stream,
        count: int,
        capture: bool,
        out: Any,
    ) -> DeviceTensor:
        self._reservation.hold(rows.shape[0])
        bound = self._reservation.bound(grid, batch_size, self._last)
        program = bound.program
        result = self._results.lend(program.dense_shape, program.dense_type, stream, out)
        if not capture and self._last is not None and self._last.handle != stream.handle:
            stream.wait(self._done)
        # The launches of an empty frame still work on the rest. Where the host knows the number of
        # rows, launches have the size that is reserved, so that one graph serves any number.
        room = rows.shape[0] if count or not rows.shape[0] else program.capacities[0]
        given = Inputs(rows.address, rows.dtype, sites.address, room)
        try:
            self._reservation.give(-1 if count else rows.shape[0], stream, capture)
            bound.launch(given, count, result.address, stream, capture)
        except sparse_cuda.native().CudaFailure as error:
            raise DeviceError(f"the sparse engine: {error}") from None
        self._last = stream
        if not capture:
            self._done.record(stream)
            result.written(stream)
        return result

    def _settle(self) -> tuple[bool, list[int]]:
        if self._last is None:
            raise FrameError("no frame was enqueued")
        return self._reservation.settle(self._last)

    def _wait(self) -> None:
        for stream in {self.stream, self._last or self.stream}:
            stream.synchronize()
