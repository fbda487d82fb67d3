"""Runs a plan on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from s4d_ops import InvalidInputError, sparse
from s4d_ops.sparse import PackedWeights, Rulebook

from ..errors import FrameError
from .errors import LidarGraphError
from .nodes import ConvNode, LidarGraph, ReshapeNode, ScatterNode, TransposeNode
from .plan import AddStep, ConvStep, Plan, make_plan, weight_codes
from .rows import SparseRows, host_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CpuEncoder"]


class _Frame:
    """State of one call: tensors alive, links left by strided convolutions."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.tensors: dict[str, Any] = {}
        self.links: dict[str, tuple[SparseRows, SparseRows, Rulebook]] = {}


class CpuEncoder:
    """The network of ``graph`` in ``precision``, ready to run."""

    def __init__(self, graph: LidarGraph, precision: str, threads: int) -> None:
        self.graph = graph
        self.threads = threads
        self.plan = make_plan(graph, precision)
        self._loose = make_plan(graph, precision, fuse=False)
        self._weights = {
            step.node.target: _pack(step) for step in self.plan.steps if isinstance(step, ConvStep)
        }

    def run(
        self, features: Any, indices: Any, grid_shape: tuple[int, int, int], batch_size: int
    ) -> NDArray[Any]:
        """The first graph output."""
        tensors = self._run(self.plan, features, indices, grid_shape, batch_size, keep=False)
        result = tensors[self.graph.outputs[0]]
        return result.features if isinstance(result, SparseRows) else result  # type: ignore[no-any-return]

    def trace(
        self,
        features: Any,
        indices: Any,
        grid_shape: tuple[int, int, int],
        batch_size: int,
        fused: bool,
    ) -> dict[str, Any]:
        """Every tensor by name: of the plan as it runs, or of the graph without fusion."""
        plan = self.plan if fused else self._loose
        return self._run(plan, features, indices, grid_shape, batch_size, keep=True)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        return sum(weights.nbytes for weights in self._weights.values())

    def _run(
        self,
        plan: Plan,
        features: Any,
        indices: Any,
        grid_shape: tuple[int, int, int],
        batch_size: int,
        keep: bool,
    ) -> dict[str, Any]:
        source = self.graph.source
        frame = _Frame(batch_size)
        frame.tensors[source] = host_rows(
            features, indices, self.graph.in_channels, grid_shape, plan.storage[source]
        )
        for step, unused in zip(plan.steps, plan.free_after, strict=True):
            if isinstance(step, ConvStep):
                self._convolve(frame, plan, step)
            elif isinstance(step, AddStep):
                self._add(frame, plan, step)
            else:
                self._reshape(frame, step)
            for name in () if keep else unused:
                del frame.tensors[name]
        return frame.tensors

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
            self._weights[node.target],
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
    if not step.quantised:
        return PackedWeights(step.node.weight.astype(np.float32))
    codes, ranges = weight_codes(step.node)
    return PackedWeights(codes, ranges)
