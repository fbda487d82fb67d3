"""The sparse engine: voxels or points in, a bird's-eye tensor out. Without torch or TensorRT."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from s4d_ops import InvalidInputError, sparse
from s4d_ops.sparse import PackedWeights, Rulebook

from ..errors import BackendUnavailableError, FrameError
from .artifact import load_graph
from .errors import LidarGraphError
from .graph import ConvNode, LidarGraph, ReshapeNode, ScatterNode, TransposeNode
from .plan import AddStep, ConvStep, Plan, Storage, make_plan
from .voxels import VoxelRules

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SparseEngine", "SparseRows"]

PRECISIONS = ("auto", "fp32", "fp16", "int8")
VOXEL_RULES_KEY = "s4d.voxel_rules"


class SparseRows:
    """Feature rows on a set of sites, as the engine passes them from step to step.

    Attributes:
        features: (V, C), stored as ``storage`` says (int8 codes: value = code * range / 127).
        indices: (V, 4) int32.
        grid_shape: sizes of the three axes.
    """

    def __init__(
        self,
        features: NDArray[Any],
        indices: NDArray[np.int32],
        grid_shape: tuple[int, int, int],
        storage: Storage,
        books: dict[Any, Rulebook],
    ) -> None:
        self.features = features
        self.indices = indices
        self.grid_shape = grid_shape
        self.storage = storage
        self.books = books  # submanifold rulebooks of these sites; shared by all rows on them

    def values(self) -> NDArray[np.float32]:
        """The features as float32."""
        if self.storage.dtype == "int8":
            return self.features.astype(np.float32) * np.float32(self.storage.range / 127)
        return self.features.astype(np.float32)


class _Frame:
    """State of one call: tensors alive, links left by strided convolutions."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.tensors: dict[str, Any] = {}
        self.links: dict[str, tuple[SparseRows, SparseRows, Rulebook]] = {}


class SparseEngine:
    """A loaded LiDAR encoder. Make one with :meth:`load`.

    The same input gives the same bits, for any number of threads. There is no limit on the number
    of voxels but memory.

    Attributes:
        graph: what was loaded.
        precision: "fp32", "fp16" or "int8". All accumulate in float32 (int8: exactly, in int32);
            fp16 stores features as half; int8 stores codes where the file says so.
        device: "cpu".
        voxel_rules: what :meth:`from_points` uses.
    """

    def __init__(
        self,
        graph: LidarGraph,
        precision: str = "auto",
        voxel_rules: VoxelRules | None = None,
        threads: int = 0,
    ) -> None:
        if precision not in PRECISIONS:
            raise LidarGraphError(f"expected precision {', '.join(PRECISIONS)}, got {precision!r}")
        if precision == "auto":
            precision = "int8" if graph.quantised else "fp16"
        self.graph = graph
        self.precision = precision
        self.device = "cpu"
        self.threads = threads
        text = graph.metadata.get(VOXEL_RULES_KEY)
        self.voxel_rules = voxel_rules or (VoxelRules.from_json(text) if text else VoxelRules())
        self._weights: dict[str, PackedWeights] = {}
        self._plan = self._prepare(make_plan(graph, precision))
        self._trace_plan: Plan | None = None

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        precision: str = "auto",
        device: str = "auto",
        voxel_rules: VoxelRules | None = None,
        threads: int = 0,
    ) -> SparseEngine:
        """Load ``NAME.s4d`` or an ONNX file in libspconv's schema.

        Args:
            precision: "auto" takes int8 for a calibrated file, else fp16.
            device: "auto" or "cpu"; this version has no CUDA engine.
            voxel_rules: default: what the file says, else CenterPoint's.
            threads: 0 takes ``S4D_NUM_THREADS``, else the cores this process may use.

        Raises:
            ArtifactError, OnnxFileError, LidarGraphError: the file, and why it cannot be used.
            BackendUnavailableError: another device.
        """
        if device not in ("auto", "cpu"):
            raise BackendUnavailableError(
                f"the sparse engine runs on the CPU in this version, got device {device!r}; "
                'use "cpu"'
            )
        return cls(load_graph(path), precision, voxel_rules, threads)

    def __call__(
        self,
        features: Any,
        indices: Any,
        grid_shape: Sequence[int] | None = None,
        batch_size: int = 1,
    ) -> NDArray[Any]:
        """Encode voxels.

        Args:
            features: (V, C) float16 or float32 (or float64), numpy or any DLPack tensor on the CPU.
            indices: (V, 4) int32, ``batch`` and the grid's axes; no row twice, none outside.
            grid_shape: the grid, in the index order; default: the file's.

        Returns:
            (B, C * D, H, W), float16 (float32 for fp32). It supports DLPack.

        Raises:
            FrameError: shapes, NaN, or rows that do not fit; the engine stays usable.
        """
        frame = self._run(self._plan, features, indices, grid_shape, batch_size)
        result = frame.tensors[self.graph.outputs[0]]
        return result.features if isinstance(result, SparseRows) else result  # type: ignore[no-any-return]

    def from_points(self, points: Any) -> NDArray[Any]:
        """Voxelise one cloud (P, C), or a list of clouds as a batch, and encode it."""
        features, indices, batch_size = self.voxelize(points)
        return self(features, indices, None, batch_size)

    def voxelize(self, points: Any) -> tuple[NDArray[np.float32], NDArray[np.int32], int]:
        """Features (V, C), indices (V, 4) and batch size of one cloud or a list of clouds."""
        clouds = list(points) if isinstance(points, (list, tuple)) else [points]
        if not clouds:
            raise FrameError("expected at least one point cloud, got none")
        voxels = [self.voxel_rules.voxelize(_numpy(cloud, "points")) for cloud in clouds]
        order = self.voxel_rules.index_order
        rows = [v.indices(order, batch) for batch, v in enumerate(voxels)]
        return np.concatenate([v.features for v in voxels]), np.concatenate(rows), len(clouds)

    def trace(
        self,
        features: Any,
        indices: Any,
        grid_shape: Sequence[int] | None = None,
        batch_size: int = 1,
    ) -> dict[str, Any]:
        """Every tensor of the graph by name, without fusion: ``SparseRows`` or dense arrays.

        For comparisons layer by layer; slower, and nothing is freed.
        """
        if self._trace_plan is None:
            self._trace_plan = make_plan(self.graph, self.precision, fuse=False)
        plan = Plan(
            self._trace_plan.steps,
            self._trace_plan.storage,
            tuple(() for _ in self._trace_plan.steps),
        )
        return self._run(plan, features, indices, grid_shape, batch_size).tensors

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        return sum(weights.nbytes for weights in self._weights.values())

    def _prepare(self, plan: Plan) -> Plan:
        for step in plan.steps:
            if isinstance(step, ConvStep):
                self._weights[step.node.name or step.node.target] = _pack(step)
        return plan

    def _run(
        self, plan: Plan, features: Any, indices: Any, grid_shape: Any, batch_size: int
    ) -> _Frame:
        frame = _Frame(batch_size)
        frame.tensors[self.graph.source] = self._input(plan, features, indices, grid_shape)
        for step, unused in zip(plan.steps, plan.free_after, strict=True):
            if isinstance(step, ConvStep):
                self._convolve(frame, plan, step)
            elif isinstance(step, AddStep):
                self._add(frame, plan, step)
            else:
                self._reshape(frame, step)
            for name in unused:
                del frame.tensors[name]
        return frame

    def _input(self, plan: Plan, features: Any, indices: Any, grid_shape: Any) -> SparseRows:
        rows, sites = _numpy(features, "features"), _numpy(indices, "indices")
        storage = plan.storage[self.graph.source]
        channels = self.graph.in_channels
        if rows.ndim != 2 or rows.shape[1] != channels or sites.shape != (len(rows), 4):
            raise FrameError(
                f"expected features (V, {channels}) and indices (V, 4), got {rows.shape} and "
                f"{sites.shape}"
            )
        if rows.dtype.kind != "f" or sites.dtype.kind not in "iu":
            raise FrameError(
                f"expected floating features and integer indices, got {rows.dtype} and "
                f"{sites.dtype}"
            )
        with np.errstate(over="ignore"):  # becomes infinite, which is refused below
            stored = rows.astype(storage.dtype)
        if not np.isfinite(stored).all():
            raise FrameError("a feature is NaN, infinite, or too large for half precision")
        shape = tuple(int(n) for n in (self.graph.grid_shape if grid_shape is None else grid_shape))
        if len(shape) != 3:
            raise FrameError(f"expected a grid shape of three sizes, got {shape}")
        return SparseRows(stored, sites.astype(np.int32), shape, storage, {})

    def _convolve(self, frame: _Frame, plan: Plan, step: ConvStep) -> None:
        node = step.node
        source: SparseRows = frame.tensors[node.source]
        try:
            book, inverse, sites = self._rulebook(frame, node, source)
        except InvalidInputError as error:
            raise FrameError(f"{node.name}: {error}") from None
        storage = plan.storage[step.target]
        residual: SparseRows | None = frame.tensors[step.residual] if step.residual else None
        residual_range = step.residual_range
        if residual is not None:
            if residual.indices is not sites.indices:
                raise LidarGraphError(f"{node.name}: the two sides of its addition differ in sites")
            if residual.storage.dtype == "int8":
                residual_range = 0.0  # rounded already, where it was stored
        features = sparse.convolution(
            source.features,
            self._weights[node.name or node.target],
            book,
            node.bias,
            inverse=inverse,
            activation=step.activation,
            residual=None if residual is None else residual.features,
            input_range=source.storage.range or (node.input_range if step.quantised else 0.0),
            residual_range=residual.storage.range if residual is not None else 0.0,
            add_ranges=(step.sum_range, residual_range),
            output_dtype=np.dtype(storage.dtype),
            output_range=storage.range,
            threads=self.threads,
        )
        out = SparseRows(features, sites.indices, sites.grid_shape, storage, sites.books)
        frame.tensors[step.target] = out
        if node.kind == "strided" and node.rulebook:
            frame.links[node.rulebook] = (source, out, book)

    def _rulebook(
        self, frame: _Frame, node: ConvNode, source: SparseRows
    ) -> tuple[Rulebook, bool, SparseRows]:
        """The rulebook, whether it runs backwards, and rows on the output sites."""
        where = (source.indices, source.grid_shape, frame.batch_size, node.kernel)
        if node.kind == "subm":
            key = (node.kernel, node.dilation)
            if key not in source.books:
                source.books[key] = sparse.submanifold_rulebook(
                    *where, node.dilation, threads=self.threads
                )
            return source.books[key], False, source
        if node.kind == "inverse":
            if node.rulebook not in frame.links:
                raise LidarGraphError(
                    f"{node.name}: no strided convolution has the rulebook {node.rulebook!r}"
                )
            before, after, book = frame.links[node.rulebook]
            if after.indices is not source.indices:
                raise LidarGraphError(f"{node.name}: its input has other sites than its rulebook")
            return book, True, before
        book = sparse.strided_rulebook(
            *where, node.stride, node.padding, node.dilation, threads=self.threads
        )
        empty = source.features[:0]
        target = SparseRows(empty, book.out_indices, book.out_shape, source.storage, {})
        return book, False, target

    def _add(self, frame: _Frame, plan: Plan, step: AddStep) -> None:
        left: SparseRows = frame.tensors[step.left]
        right: SparseRows | None = frame.tensors[step.right] if step.right else None
        if right is not None and right.indices is not left.indices:
            raise LidarGraphError(f"{step.name}: the two sides of the addition differ in sites")
        ranges = [step.left_range, step.right_range]
        for place, rows in enumerate((left, right)):
            if rows is not None and rows.storage.dtype == "int8":
                ranges[place] = 0.0
        storage = plan.storage[step.target]
        features = sparse.add(
            left.features,
            None if right is None else right.features,
            activation=step.activation,
            features_range=left.storage.range,
            other_range=right.storage.range if right is not None else 0.0,
            add_ranges=(ranges[0], ranges[1]),
            output_dtype=np.dtype(storage.dtype),
            output_range=storage.range,
            threads=self.threads,
        )
        frame.tensors[step.target] = SparseRows(
            features, left.indices, left.grid_shape, storage, left.books
        )

    def _reshape(
        self, frame: _Frame, step: ScatterNode | TransposeNode | ReshapeNode | Any
    ) -> None:
        source = frame.tensors[step.source]
        if isinstance(step, ScatterNode):
            folded = sparse.scatter_dense(
                source.features, source.indices, source.grid_shape, frame.batch_size,
                threads=self.threads,
            )  # fmt: skip
            channels = source.features.shape[1]
            result = folded.reshape(frame.batch_size, channels, *source.grid_shape)
        elif isinstance(step, TransposeNode):
            if len(step.order) != source.ndim:
                raise LidarGraphError(
                    f"{step.name}: cannot permute {source.ndim} axes by {step.order}"
                )
            result = source.transpose(step.order)
        else:
            result = _fold(source, step)
        frame.tensors[step.target] = result


def _fold(source: NDArray[Any], step: ReshapeNode) -> NDArray[Any]:
    """A Reshape of the file. The sizes in it are those of the export; with another batch size or
    grid, the same joining of channel and depth is done on the actual sizes."""
    if source.ndim == 5 and len(step.shape) == 4:
        batch, channels, depth, height, width = source.shape
        return np.ascontiguousarray(source).reshape(batch, channels * depth, height, width)
    shape = (source.shape[0], *step.shape[1:])
    try:
        return np.ascontiguousarray(source).reshape(shape)
    except ValueError:
        raise LidarGraphError(
            f"{step.name}: cannot reshape {source.shape} to {step.shape}"
        ) from None


def _pack(step: ConvStep) -> PackedWeights:
    weight = step.node.weight.astype(np.float32)
    if not step.quantised:
        return PackedWeights(weight)
    ranges = np.array(step.node.weight_ranges, np.float64)
    # A channel of zeros has range 0; any positive range stores it exactly.
    ranges = np.where(ranges > 0, ranges, 1.0)
    scaled = weight.astype(np.float64) * (127.0 / ranges)[:, None, None, None, None]
    codes = np.clip(np.rint(scaled), -127, 127).astype(np.int8)
    return PackedWeights(codes, ranges)


def _numpy(value: Any, what: str) -> NDArray[Any]:
    if isinstance(value, np.ndarray):
        return value
    try:
        return np.from_dlpack(value) if hasattr(value, "__dlpack__") else np.asarray(value)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise FrameError(f"{what} cannot be read as a CPU array: {error}") from None
