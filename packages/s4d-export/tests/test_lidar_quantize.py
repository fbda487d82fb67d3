"""LiDAR in int8: ranges, what a layer costs, training with it."""

import copy

import numpy as np
import pytest
import torch
from lidar_encoders import TINY, frame, trained

from s4d_export.errors import QuantizationError
from s4d_export.lidar import (
    CalibrationFrame,
    Ranges,
    calibrate,
    encoder_layers,
    encoder_to_onnx,
    export_encoder,
    prepare_qat,
    ranges_of,
    remove_quantizers,
    sensitivity,
    verify_export,
)
from s4d_export.lidar.calibration import Histogram
from s4d_runtime.lidar import SparseEngine


@pytest.fixture(scope="module")
def tiny():
    return trained(TINY)


def test_histogram_and_methods():
    rng = np.random.default_rng(0)
    histogram, values = Histogram(), []
    for scale in (0.1, 1.0, 30.0):  # forces the bins to widen
        values.append(rng.standard_normal(20000) * scale)
        histogram.add(torch.from_numpy(values[-1]))
    everything = np.abs(np.concatenate(values))
    assert histogram.counts.sum() == everything.size
    assert histogram.amax("max", 0) == everything.max()
    got = histogram.amax("percentile", 99)
    assert got == pytest.approx(np.quantile(everything, 0.99), rel=0.01)

    def cost(amax):
        stored = np.minimum(np.rint(everything * (127 / amax)), 127) * (amax / 127)
        return ((everything - stored) ** 2).sum()

    best = min(np.linspace(0.125, 1, 113) * everything.max(), key=cost)
    assert cost(histogram.amax("mse", 0)) <= 1.01 * cost(best)
    with pytest.raises(QuantizationError, match="NaN"):
        histogram.add(torch.tensor([float("nan")]))


def test_sensitivity_names_the_worst_layer(tiny):
    frames = [frame(TINY, seed) for seed in range(2)]
    ranges = calibrate(tiny, frames, method="max")
    ranges.inputs["conv3"] /= 40  # clip almost everything there
    rows = sensitivity(tiny, ranges, frames)
    assert rows[0].layer == "conv3" and rows[0].error > 5 * rows[1].error
    assert len(rows) == len(encoder_layers(tiny))
    assert all(m.input_quantizer is None for m in tiny.modules() if hasattr(m, "input_quantizer"))


def test_qat_recovers_what_clipping_cost(tiny, tmp_path):
    frames = [frame(TINY, seed) for seed in range(3)]
    ranges = calibrate(tiny, frames, method="max", half=())
    ranges.inputs["conv3"] /= 4
    student = prepare_qat(copy.deepcopy(tiny), ranges)
    data = frames[0]
    features, rows = torch.from_numpy(data.features).float(), torch.from_numpy(data.indices)
    want = tiny(features, rows).detach()
    optimiser = torch.optim.Adam(student.parameters(), 1e-3)
    losses = []
    for _ in range(25):
        loss = ((student(features, rows) - want) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    kept = ranges_of(student)
    assert kept.half == frozenset()
    assert kept.inputs["conv3"] == pytest.approx(ranges.inputs["conv3"], rel=1e-6)
    path = export_encoder(student, tmp_path / "q.s4d", kept)
    assert verify_export(student, path, [data])[0].relative <= 0.02
    assert ranges_of(remove_quantizers(student)).half == {
        layer.name for layer in encoder_layers(student)
    }

    # Layers that stay half, as by default: a student carries no ranges of theirs.
    part = calibrate(tiny, frames)
    assert part.half
    kept = ranges_of(prepare_qat(copy.deepcopy(tiny), part))
    assert kept.half == part.half and not set(kept.adds) & kept.half
    maps = [
        SparseEngine.load(export_encoder(tiny, tmp_path / f"{name}.s4d", chosen))(
            data.features, data.indices
        )
        for name, chosen in (("calibrated", part), ("trained", kept))
    ]
    np.testing.assert_array_equal(*maps)


def test_impossible_calibrations_are_named(tiny):
    with pytest.raises(QuantizationError, match="at least one"):
        calibrate(tiny, [])
    with pytest.raises(QuantizationError, match=r"no layer 'conv99'; .* conv0 to conv6"):
        calibrate(tiny, [frame(TINY)], half=["conv99"])
    with pytest.raises(QuantizationError, match="method"):
        calibrate(tiny, [frame(TINY)], method="entropy")
    with pytest.raises(QuantizationError, match="percentile above 0"):
        calibrate(tiny, [frame(TINY)], method="percentile", percentile=101)
    with pytest.raises(QuantizationError, match="no usable range"):
        encoder_to_onnx(tiny, Ranges())
    empty = CalibrationFrame(np.zeros((0, 5), np.float32), np.zeros((0, 4), np.int32))
    with pytest.raises(QuantizationError, match="no usable range"):
        calibrate(tiny, [empty])
