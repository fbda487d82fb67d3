"""Where a decoder looks and with which weights, in one Triton kernel each.

The formulas are those of `key_points` and `aggregation`, which make some fifty small steps of them.
"""

from __future__ import annotations

import torch
import triton  # type: ignore
import triton.language as tl  # type: ignore
from torch import Tensor, nn

from ..aggregation import DeformableAggregation
from ..aggregation_op import deformable_aggregation
from ..box import BOX_DIMS
from ..key_points import MIN_DEPTH
from ..temporal_sampling import Scene

__all__ = ["FusedAggregation", "fuse_aggregation"]

_PAIRS = 128  # (instance, point) pairs of a program


@triton.jit
def _locations(
    learned,  # (B * A, 3 * learned points) before the sigmoid, any float
    fixed,  # (fixed points, 3) factors of the box sizes
    box,  # (B * A, 11)
    matrix,  # (B, N, 4, 4)
    image_wh,  # (B, N, 2)
    out,  # (B * A, P, N, 2)
    instances,
    pairs,
    MIN_DEPTH: tl.constexpr,  # an argument would be float64 under Inductor
    BOX: tl.constexpr,
    POINTS: tl.constexpr,
    FIXED: tl.constexpr,
    CAMERAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = pair < pairs
    instance = pair // POINTS
    point = pair % POINTS
    is_fixed = point < FIXED
    raw = learned + instance * (3 * (POINTS - FIXED)) + 3 * (point - FIXED)
    state = box + instance * BOX
    x = tl.zeros([BLOCK], tl.float32)
    y = tl.zeros([BLOCK], tl.float32)
    z = tl.zeros([BLOCK], tl.float32)
    for axis in tl.static_range(3):
        given = tl.load(fixed + 3 * point + axis, mask=there & is_fixed, other=0.0)
        logit = tl.load(raw + axis, mask=there & (point >= FIXED), other=0.0).to(tl.float32)
        scale = tl.where(is_fixed, given, tl.sigmoid(logit) - 0.5)
        size = tl.exp(tl.load(state + 3 + axis, mask=there, other=0.0))
        if axis == 0:
            x = scale * size
        elif axis == 1:
            y = scale * size
        else:
            z = scale * size
    sin = tl.load(state + 6, mask=there, other=0.0)
    cos = tl.load(state + 7, mask=there, other=0.0)
    px = cos * x - sin * y + tl.load(state, mask=there, other=0.0)
    py = sin * x + cos * y + tl.load(state + 1, mask=there, other=0.0)
    pz = z + tl.load(state + 2, mask=there, other=0.0)
    sample = instance // instances
    for camera in tl.static_range(CAMERAS):
        m = matrix + (sample * CAMERAS + camera) * 16
        u = _row(m, px, py, pz, there)
        v = _row(m + 4, px, py, pz, there)
        w = _row(m + 8, px, py, pz, there)
        # As clamp does, NaN stays NaN.
        depth = tl.maximum(w, MIN_DEPTH, propagate_nan=tl.PropagateNan.ALL)
        size_at = image_wh + (sample * CAMERAS + camera) * 2
        width = tl.load(size_at, mask=there, other=1.0)
        height = tl.load(size_at + 1, mask=there, other=1.0)
        to = out + (pair * CAMERAS + camera) * 2
        tl.store(to, u / depth / width, mask=there)
        tl.store(to + 1, v / depth / height, mask=there)


@triton.jit
def _row(m, x, y, z, there):
    """One row of a matrix times (x, y, z, 1)."""
    a = tl.load(m, mask=there, other=0.0)
    b = tl.load(m + 1, mask=there, other=0.0)
    c = tl.load(m + 2, mask=there, other=0.0)
    d = tl.load(m + 3, mask=there, other=0.0)
    return a * x + b * y + c * z + d


@triton.jit
def _weights(
    of_instance,  # (B * A, L * P * G)
    of_camera,  # (B, N, L * P * G)
    out,  # (B * A, P, N, L, G)
    instances,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    GROUPS: tl.constexpr,
    CAMERAS: tl.constexpr,
    ROWS: tl.constexpr,  # L * P and G, rounded up to powers of 2
    COLUMNS: tl.constexpr,
):
    """Softmax over cameras, levels and points, for each group; a program has one instance."""
    item = tl.program_id(0).to(tl.int64)
    sample = item // instances
    row = tl.arange(0, ROWS)
    group = tl.arange(0, COLUMNS)
    count: tl.constexpr = LEVELS * POINTS
    there = (row < count)[:, None] & (group < GROUPS)[None, :]
    place = row[:, None] * GROUPS + group[None, :]
    own = tl.load(of_instance + item * count * GROUPS + place, mask=there, other=0.0)
    own = own.to(tl.float32)
    cameras = of_camera + sample * CAMERAS * count * GROUPS + place
    top = tl.full([COLUMNS], float("-inf"), tl.float32)
    for camera in tl.static_range(CAMERAS):
        logit = own + tl.load(cameras + camera * count * GROUPS, mask=there, other=0.0)
        top = tl.maximum(top, tl.max(tl.where(there, logit, float("-inf")), 0))
    top = tl.where(group < GROUPS, top, 0.0)
    total = tl.zeros([COLUMNS], tl.float32)
    for camera in tl.static_range(CAMERAS):
        logit = own + tl.load(cameras + camera * count * GROUPS, mask=there, other=0.0)
        total += tl.sum(tl.where(there, tl.exp(logit - top[None, :]), 0.0), 0)
    total = tl.where(group < GROUPS, total, 1.0)
    level = row // POINTS
    point = row % POINTS
    to = out + item * CAMERAS * count * GROUPS + group[None, :]
    to += (point * CAMERAS * LEVELS * GROUPS + level * GROUPS)[:, None]
    for camera in tl.static_range(CAMERAS):
        logit = own + tl.load(cameras + camera * count * GROUPS, mask=there, other=0.0)
        weight = tl.exp(logit - top[None, :]) / total[None, :]
        tl.store(to + camera * LEVELS * GROUPS, weight, mask=there)


class FusedAggregation(nn.Module):
    """`DeformableAggregation` of a model with camera embeddings that samples one frame."""

    fixed: Tensor

    def __init__(self, block: DeformableAggregation) -> None:
        super().__init__()
        self.learned = block.key_points.learned
        self.register_buffer("fixed", block.key_points.fix_scale.detach().float().contiguous())
        assert block.camera_encoder is not None
        self.camera_encoder, self.weights = block.camera_encoder, block.weights
        self.output = block.output
        self.levels, self.points, self.groups = block.num_levels, block.num_points, block.num_groups

    def forward(self, feature: Tensor, box: Tensor, embed: Tensor, scene: Scene) -> Tensor:
        """As `DeformableAggregation.forward`, without other frames and reweighting."""
        assert not scene.others and scene.reweight is None
        view = scene.view
        locations = self.locations(feature, box, view.lidar2img, scene.image_wh)
        weights = self.sampling_weights(feature + embed, view.lidar2img)
        result: Tensor = self.output(deformable_aggregation(view.maps, locations, weights))
        return result

    def locations(
        self, feature: Tensor, box: Tensor, lidar2img: Tensor, image_wh: Tensor
    ) -> Tensor:
        """(B, A, P, N, 2), see `project_points`."""
        batch, count = box.shape[:2]
        cameras = lidar2img.shape[1]
        learned = self.learned(feature).contiguous()
        out = torch.empty(
            (batch, count, self.points, cameras, 2), dtype=torch.float32, device=box.device
        )
        pairs = batch * count * self.points
        _locations[(triton.cdiv(pairs, _PAIRS),)](
            *(learned, self.fixed, box.contiguous(), lidar2img.contiguous()),
            *(image_wh.contiguous(), out, count, pairs),
            MIN_DEPTH=MIN_DEPTH,
            BOX=BOX_DIMS,
            POINTS=self.points,
            FIXED=self.fixed.shape[0],
            CAMERAS=cameras,
            BLOCK=_PAIRS,
        )
        return out

    def sampling_weights(self, feature: Tensor, lidar2img: Tensor) -> Tensor:
        """(B, A, P, N, L, G), see `DeformableAggregation`."""
        batch, count = feature.shape[:2]
        cameras = lidar2img.shape[1]
        camera = self.camera_encoder(lidar2img[:, :, :3].flatten(2))
        of_camera = nn.functional.linear(camera, self.weights.weight)
        of_instance = self.weights(feature)
        shape = (batch, count, self.points, cameras, self.levels, self.groups)
        out = torch.empty(shape, dtype=torch.float32, device=feature.device)
        _weights[(batch * count,)](
            *(of_instance, of_camera, out, count),
            LEVELS=self.levels,
            POINTS=self.points,
            GROUPS=self.groups,
            CAMERAS=cameras,
            ROWS=triton.next_power_of_2(self.levels * self.points),
            COLUMNS=triton.next_power_of_2(self.groups),
        )
        return out


def fuse_aggregation(model: nn.Module) -> int:
    """Replace every block that the kernels can do, in place. Returns how many."""
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if (
                isinstance(child, DeformableAggregation)
                and child.camera_encoder is not None
                and child.fusion is None
                and child.weights.weight.dtype == torch.float32
            ):
                setattr(parent, name, FusedAggregation(child))
                count += 1
    return count
