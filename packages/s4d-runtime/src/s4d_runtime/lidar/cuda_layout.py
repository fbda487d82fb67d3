"""What a plan needs on a CUDA device: levels of sites, tables, and the dense map at its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from .errors import LidarGraphError
from .nodes import ConvNode, LidarGraph, ReshapeNode, ScatterNode, TransposeNode, Triple
from .plan import AddStep, ConvStep, Plan

__all__ = ["DenseEnd", "Level", "Table", "dense_end", "site_levels"]

_ONES: Triple = (1, 1, 1)
_ZEROS: Triple = (0, 0, 0)
Geometry = tuple[Triple, Triple, Triple, Triple]  # kernel, stride, padding, dilation


@dataclass(eq=False)
class Level:
    """A set of sites: the input's, or the output sites of a strided convolution."""

    index: int
    grid: Triple
    parent: Level | None = None
    geometry: Geometry = (_ONES, _ONES, _ZEROS, _ONES)


@dataclass(eq=False)
class Table:
    """Which row of ``source`` each row of ``target`` reads; ``inverse_of`` turns another round."""

    source: Level
    target: Level
    geometry: Geometry
    inverse_of: Table | None = None

    @property
    def volume(self) -> int:
        """Kernel offsets."""
        a, b, c = self.geometry[0]
        return a * b * c


@dataclass
class Sites:
    """Levels and tables of a plan, and where each tensor and convolution has its own."""

    levels: list[Level] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    of_tensor: dict[str, Level] = field(default_factory=dict)
    of_step: dict[str, Table] = field(default_factory=dict)  # by the convolution's target

    def chain(self) -> list[Level]:
        """All levels, if each follows from the one before and all can be made from the input's
        rows at once: kernels no smaller than their strides, no dilation, at most eight levels.
        Else, or with one level, none."""
        for before, level in pairwise(self.levels):
            kernel, stride, _, dilation = level.geometry
            covered = all(k >= s for k, s in zip(kernel, stride, strict=True))
            if level.parent is not before or dilation != _ONES or not covered:
                return []
        return list(self.levels) if 1 < len(self.levels) <= 8 else []


def site_levels(graph: LidarGraph, plan: Plan, grid_shape: Triple) -> Sites:
    """Walk the plan.

    Raises:
        LidarGraphError: an inverse convolution without its forward one, or an addition of tensors
            on different sites.
    """
    sites = Sites()
    sites.levels.append(Level(0, grid_shape))
    sites.of_tensor[graph.source] = sites.levels[0]
    submanifold: dict[tuple[int, Triple, Triple], Table] = {}
    links: dict[str, Table] = {}
    for step in plan.steps:
        if isinstance(step, AddStep):
            sites.of_tensor[step.target] = sites.of_tensor[step.left]
            if step.right and sites.of_tensor[step.right] is not sites.of_tensor[step.left]:
                raise LidarGraphError(f"{step.name}: the two sides of the addition differ in sites")
        if not isinstance(step, ConvStep):
            continue
        node = step.node
        source = sites.of_tensor[node.source]
        table = _table(sites, node, source, submanifold, links)
        if table not in sites.tables:
            sites.tables.append(table)
        sites.of_step[node.target] = table
        sites.of_tensor[step.target] = table.target
        if step.residual and sites.of_tensor[step.residual] is not table.target:
            raise LidarGraphError(f"{node.name}: the two sides of its addition differ in sites")
    return sites


def _table(
    sites: Sites,
    node: ConvNode,
    source: Level,
    submanifold: dict[tuple[int, Triple, Triple], Table],
    links: dict[str, Table],
) -> Table:
    if node.kind == "subm":
        key = (source.index, node.kernel, node.dilation)
        if key not in submanifold:
            if any(size % 2 == 0 for size in node.kernel):
                raise LidarGraphError(f"{node.name}: a submanifold kernel must have odd sizes")
            a, b, c = (k // 2 * d for k, d in zip(node.kernel, node.dilation, strict=True))
            geometry = (node.kernel, _ONES, (a, b, c), node.dilation)
            submanifold[key] = Table(source, source, geometry)
        return submanifold[key]
    if node.kind == "inverse":
        if node.rulebook not in links:
            raise LidarGraphError(
                f"{node.name}: no strided convolution has the rulebook {node.rulebook!r}"
            )
        forward = links[node.rulebook]
        if forward.target is not source:
            raise LidarGraphError(f"{node.name}: its input has other sites than its rulebook")
        return Table(source, forward.source, forward.geometry, forward)
    geometry = (node.kernel, node.stride, node.padding, node.dilation)
    sizes = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(source.grid, *geometry, strict=True)
    ]
    if min(sizes) < 1:
        raise LidarGraphError(f"{node.name}: its kernel is larger than the grid {source.grid}")
    level = Level(len(sites.levels), (sizes[0], sizes[1], sizes[2]), source, geometry)
    sites.levels.append(level)
    table = Table(source, level, geometry)
    if node.rulebook:
        links[node.rulebook] = table
    return table


@dataclass(frozen=True)
class DenseEnd:
    """The dense map: of which sparse tensor, its axes in the grid's, and whether C and D join."""

    source: str
    axes: Triple
    folded: bool

    def shape(self, batch: int, channels: int, grid: Triple) -> tuple[int, ...]:
        """Of the result."""
        depth, height, width = (grid[axis] for axis in self.axes)
        if self.folded:
            return batch, channels * depth, height, width
        return batch, channels, depth, height, width


def dense_end(graph: LidarGraph, plan: Plan) -> DenseEnd:
    """The steps from the last sparse tensor to the graph's first output, as one scatter.

    Raises:
        LidarGraphError: the output is not a ScatterDense with, at most, a Transpose and a Reshape
            that joins channels and depth.
    """
    made = {step.target: step for step in plan.steps}
    folded, axes = False, (0, 1, 2)
    name = graph.outputs[0]
    while True:
        step = made.get(name)
        if isinstance(step, ReshapeNode) and not folded and len(step.shape) == 4:
            folded, name = True, step.source
        elif isinstance(step, TransposeNode) and step.order[:2] == (0, 1) and len(step.order) == 5:
            order = [axis - 2 for axis in step.order[2:]]
            a, b, c = (order[axis] for axis in axes)
            axes, name = (a, b, c), step.source
        elif isinstance(step, ScatterNode):
            return DenseEnd(step.source, axes, folded)
        else:
            raise LidarGraphError(
                "the CUDA engine returns the dense map of a ScatterDense, with a Transpose of its "
                "grid axes and a Reshape to four axes; use the CPU for this graph"
            )
