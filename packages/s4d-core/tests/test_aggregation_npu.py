"""The operator of another device's package, with a stand-in of its documented interface."""

from __future__ import annotations

import sys
import types

import pytest
import torch

import s4d_core
from s4d_core import aggregation_npu
from s4d_core.aggregation_op import FeatureMaps, deformable_aggregation, layout_tables
from s4d_ops import reference

SIZES = ((8, 22), (4, 11))
CAMERAS = 3


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch):
    """mx_driving's function, responsible for CPU tensors, and the arguments that it was given."""
    found: list[tuple[torch.Tensor, ...]] = []

    def stand_in(feature_maps, spatial_shape, scale_start_index, sample_locations, weight):
        arguments = (feature_maps, spatial_shape, scale_start_index, sample_locations, weight)
        found.append(arguments)
        assert spatial_shape.dtype == scale_start_index.dtype == torch.int32
        assert feature_maps.dtype == sample_locations.dtype == weight.dtype == torch.float32
        assert sample_locations.min() >= 0 and sample_locations.max() <= 1
        return reference.deformable_aggregation(*arguments)

    module = types.ModuleType("mx_driving")
    module.deformable_aggregation = stand_in  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mx_driving", module)
    monkeypatch.setattr(aggregation_npu, "PACKAGES", {"cpu": "mx_driving"})
    monkeypatch.setattr("s4d_core.aggregation_op.PACKAGES", {"cpu": "mx_driving"})
    aggregation_npu._function.cache_clear()
    yield found
    aggregation_npu._function.cache_clear()


def arguments(groups: int = 8, channels: int = 64):
    torch.manual_seed(0)
    shapes, starts = (torch.tensor(t) for t in layout_tables(SIZES, CAMERAS))
    rows = CAMERAS * sum(h * w for h, w in SIZES)
    maps = FeatureMaps(torch.randn(2, rows, channels), shapes, starts, SIZES)
    locations = torch.rand(2, 5, 4, CAMERAS, 2) * 2 - 0.5
    locations[0, 0, 0, 0, 0] = float("nan")
    locations[0, 1, 0, 0, 1] = float("inf")
    return maps, locations, torch.rand(2, 5, 4, CAMERAS, len(SIZES), groups)


def test_the_package_computes_values_and_gradients(calls) -> None:
    maps, locations, weights = arguments()
    maps.feature.requires_grad_()
    weights.requires_grad_()
    out = deformable_aggregation(maps, locations, weights)
    assert len(calls) == 1
    out.square().sum().backward()
    gradients = maps.feature.grad.clone(), weights.grad.clone()
    maps.feature.grad = weights.grad = None
    with s4d_core.use_reference_op():
        wanted = deformable_aggregation(maps, locations, weights)
    assert len(calls) == 1
    wanted.square().sum().backward()
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(gradients[0], maps.feature.grad)
    torch.testing.assert_close(gradients[1], weights.grad)


def test_half_precision_goes_through_float32(calls) -> None:
    maps, locations, weights = arguments()
    maps = maps._replace(feature=maps.feature.half())
    assert deformable_aggregation(maps, locations, weights.half()).dtype == torch.float16
    assert len(calls) == 1


@pytest.mark.parametrize(("groups", "channels"), [(4, 64), (8, 320), (8, 40)])
def test_beyond_the_limits_the_plain_formula_runs(calls, groups: int, channels: int) -> None:
    maps, locations, weights = arguments(groups, channels)
    found = deformable_aggregation(maps, locations, weights)
    with s4d_core.use_reference_op():
        torch.testing.assert_close(found, deformable_aggregation(maps, locations, weights))
    assert not calls


def test_without_the_package_the_plain_formula_runs(calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mx_driving", None)
    maps, locations, weights = arguments()
    assert deformable_aggregation(maps, locations, weights).shape == (2, 5, 64)
    assert not calls
