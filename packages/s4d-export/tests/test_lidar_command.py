"""``s4d-export lidar``."""

import numpy as np
import pytest
import torch
from lidar_encoders import TINY

from s4d_core.lidar import build_encoder, fold_batchnorm, save_encoder
from s4d_export.cli import main
from s4d_runtime.lidar import SparseEngine, VoxelRules


def test_command(tmp_path, capsys):
    save = tmp_path / "checkpoint"
    torch.manual_seed(0)
    save_encoder(build_encoder(TINY), save)
    rules = VoxelRules(
        low=(0, 0, 0), high=(20, 24, 10), size=(1, 1, 1), grid_shape_xyz=(20, 24, 10)
    )
    (tmp_path / "rules.json").write_text(rules.to_json())
    clouds = tmp_path / "clouds"
    clouds.mkdir()
    rng = np.random.default_rng(0)
    for index in range(2):
        points = rng.uniform([0, 0, 0, -1, -1], [20, 24, 10, 1, 1], (900, 5)).astype(np.float32)
        points.tofile(clouds / f"{index}.bin")
    common = ["lidar", str(save), "--clouds", str(clouds), "--voxel-rules",
              str(tmp_path / "rules.json")]  # fmt: skip
    out = tmp_path / "a.s4d"
    assert main([*common, "-o", str(out)]) == 0
    assert "fp16 engine (first) against" in capsys.readouterr().out
    assert SparseEngine.load(out).voxel_rules == rules
    assert main([*common, "-o", str(out), "--precision", "int8", "--half", "conv0"]) == 0
    assert SparseEngine.load(out).precision == "int8"
    assert main([*common, "--sensitivity"]) == 0
    assert "conv0" in capsys.readouterr().out
    assert main(["lidar", str(save), "-o", str(out), "--precision", "int8"]) == 1
    assert "calibrate" in capsys.readouterr().err
    assert main([*common, "-o", str(tmp_path / "a.bin")]) == 1
    assert ".s4d or .onnx" in capsys.readouterr().err
    for wrong in ([], ["-o", str(out), "--frames", "0"]):
        with pytest.raises(SystemExit, match="2"):
            main([*common, *wrong])
    if not torch.cuda.is_available():
        assert main([*common, "-o", str(out), "--device", "cuda"]) == 1
        assert "no CUDA device" in capsys.readouterr().err


def test_command_takes_a_foreign_checkpoint(tmp_path, capsys):
    """BEVFusion's file, spconv 1.x layout, straight to an artifact."""
    from s4d_core.lidar import encoder_config
    from s4d_core.lidar.convert import foreign_names

    encoder = build_encoder(encoder_config("bevfusion_lidar_0075voxel")).eval()
    names = foreign_names(encoder.config, "bevfusion")
    state = {}
    for ours, value in encoder.state_dict().items():
        module, _, leaf = ours.rpartition(".")
        value = value.permute(1, 2, 3, 4, 0) if value.dim() == 5 else value
        state[f"encoders.lidar.backbone.{names[module]}.{leaf}"] = value
    torch.save({"state_dict": state}, tmp_path / "bevfusion.pth")
    command = ["lidar", str(tmp_path / "bevfusion.pth"), "-o", str(tmp_path / "b.s4d")]
    assert main([*command, "--network", "bevfusion_lidar_0075voxel"]) == 0
    engine = SparseEngine.load(tmp_path / "b.s4d", device="cpu")
    assert engine.graph.grid_shape == (1440, 1440, 41) and engine.voxel_rules.index_order == "xyz"
    rng = np.random.default_rng(0)
    rows = np.unique(rng.integers(0, 24, (400, 3)), axis=0).astype(np.int32)
    rows = np.concatenate([np.zeros((len(rows), 1), np.int32), rows], 1)
    features = rng.standard_normal((len(rows), 5)).astype(np.float32)
    with torch.no_grad():
        want = fold_batchnorm(encoder)(torch.from_numpy(features), torch.from_numpy(rows))
    got = engine(features, rows).astype(np.float32)
    assert got.shape == tuple(want.shape) == (1, 256, 180, 180)
    assert np.linalg.norm(got - want.numpy()) <= 3e-3 * want.norm().item()
    capsys.readouterr()
    assert main(command) == 1  # another network's axes do not fit, or its biases are missing
    assert "error: " in capsys.readouterr().err
