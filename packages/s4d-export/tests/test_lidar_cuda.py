"""The whole way on a CUDA device: golden weights, calibration, files, engine, the real cloud."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_lidar import data_file, golden, golden_rules
from lidar_layers import check_int8_layers

from s4d_core.lidar import build_encoder, convert_encoder_state, encoder_config, fold_batchnorm
from s4d_export.lidar import CalibrationFrame, calibrate, export_encoder, prepare_qat, verify_export
from s4d_runtime.lidar import SparseEngine, read_tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module")
def real():
    """The golden encoder at full width, folded, and the real voxels."""
    data, rules = golden("golden_scn_real.npz"), golden_rules()
    config = encoder_config("nusc_centerpoint_voxelnet_0075voxel")
    state = rules.state_dict(config.widths, config.in_channels)
    encoder = build_encoder(config)
    encoder.load_state_dict(
        convert_encoder_state({k: torch.from_numpy(v) for k, v in state.items()}, config)
    )
    voxels = CalibrationFrame(
        read_tensor(data_file("centerpoint-voxels.features.fp16.tensor")),
        read_tensor(data_file("centerpoint-voxels.indices-zyx.int32.tensor")),
    )
    folded = fold_batchnorm(encoder.double()).float().cuda()
    return folded, voxels, data


def final_rows(dense, data):
    """The rows of the last sparse map, as the golden file lists them, from (1, 256, 180, 180)."""
    z, y, x = data["final/idx"].T
    volume = np.asarray(dense, np.float64).reshape(128, 2, 180, 180)
    outside = volume.copy()
    outside[:, z, y, x] = 0
    assert not outside.any()
    return volume[:, z, y, x].T


def check(dense, data, limit):
    got, want = final_rows(dense, data), data["final/feat_fp16"].astype(np.float64)
    # The stored rows are rounded to half, which alone is 2e-4; their exact sums are beside them.
    assert np.linalg.norm(got - want) <= max(limit, 3e-4) * np.linalg.norm(want)
    for power, name in ((1, "final/rowsum"), (2, "final/rowsq")):
        sums = (got**power).sum(1) - data[name]
        assert np.linalg.norm(sums) <= power * limit * np.linalg.norm(data[name])


def test_encoder_on_the_real_cloud(real):
    encoder, voxels, data = real
    with torch.no_grad():
        check(encoder(*voxels.on(encoder)).cpu().numpy(), data, 1e-5)
        features, indices = voxels.on(encoder)
        half = encoder.half()
        dense = half(features.half(), indices)
        encoder.float()
    assert dense.dtype == torch.float16
    check(dense.float().cpu().numpy(), data, 3e-3)


def test_files_and_engine_on_the_real_cloud(real, tmp_path):
    encoder, voxels, data = real
    path = export_encoder(encoder, tmp_path / "half.s4d")
    for precision, limit in (("fp32", 1e-3), ("fp16", 3e-3)):
        engine = SparseEngine.load(path, precision, "cuda")
        check(engine(voxels.features, voxels.indices), data, limit)
        levels = engine.cuda.check()
        numbers = [int(data[f"stage{s}/num"]) for s in (1, 2, 3, 4)]
        assert levels == [*numbers, len(data["final/idx"])]
    ranges = calibrate(encoder, [voxels])
    path = export_encoder(encoder, tmp_path / "int8.s4d", ranges)
    cuda, cpu = (SparseEngine.load(path, device=device) for device in ("cuda", "cpu"))
    assert cuda.precision == "int8"
    got, host = (final_rows(e(voxels.features, voxels.indices), data) for e in (cuda, cpu))
    prepared = prepare_qat(encoder, ranges)
    fake = verify_export(prepared, path, [voxels], device="cuda")[0]
    want = data["final/feat_fp16"].astype(np.float64)
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    apart = np.linalg.norm(got - host) / np.linalg.norm(host)
    print(f"int8 against float64 {error:.4f}, against the fake quantisers {fake.relative:.4f}, "
          f"CUDA against CPU {apart:.4f}")  # fmt: skip
    # Codes that round the other way travel: with random weights two right answers are far apart.
    # Layer by layer they are equal.
    assert max(error, fake.relative, apart) <= 0.2
    assert check_int8_layers(cuda, voxels.features, voxels.indices, (41, 1440, 1440)) == 18
    weights = SparseEngine.load(tmp_path / "half.s4d", device="cuda").weight_bytes
    assert cuda.weight_bytes < 0.6 * weights


def test_calibration_equals_that_on_the_cpu(real):
    encoder, voxels, _ = real
    from s4d_export.lidar import remove_quantizers

    remove_quantizers(encoder)
    part = CalibrationFrame(voxels.features[:20000], voxels.indices[:20000])
    device = calibrate(encoder, [part])
    host = calibrate(encoder.cpu(), [part])
    encoder.cuda()
    for name, amax in host.inputs.items():
        assert abs(device.inputs[name] - amax) <= 0.02 * amax
