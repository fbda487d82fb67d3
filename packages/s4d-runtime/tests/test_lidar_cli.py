"""``s4d-run lidar`` and ``s4d-run compare``."""

import json

import numpy as np
import pytest
from lidar_reference import example_path
from PIL import Image

from s4d_runtime.cli import main
from s4d_runtime.lidar import (
    LidarManifest,
    SparseEngine,
    VoxelRules,
    read_tensor,
    write_lidar_artifact,
    write_tensor,
)
from s4d_runtime.lidar.picture import bev_picture


@pytest.fixture
def model(tmp_path):
    """The example network (grid 41 x 72 x 56) with voxel rules that fit its grid."""
    rules = VoxelRules(
        low=(0, 0, -5), high=(4.2, 5.4, 3), size=(0.075, 0.075, 0.2), grid_shape_xyz=(56, 72, 40)
    )
    manifest = LidarManifest(
        name="small", created="2026-01-01T00:00:00Z", versions={}, model={}, precision="fp16",
        voxel_rules=rules,
    )  # fmt: skip
    members = {"model.onnx": example_path().read_bytes()}
    return write_lidar_artifact(tmp_path / "small.s4d", manifest, members)


def cloud(seed, count=3000):
    rng = np.random.default_rng(seed)
    return rng.uniform([0, 0, -3, 0, 0], [4.2, 5.4, -1, 255, 0.5], (count, 5)).astype(np.float32)


def test_lidar_over_a_folder(model, tmp_path, capsys):
    folder = tmp_path / "clouds"
    folder.mkdir()
    cloud(0).tofile(folder / "a.bin")
    np.save(folder / "b.npy", cloud(1))
    write_tensor(folder / "c.tensor", cloud(2).astype(np.float16))
    out, log = tmp_path / "out", tmp_path / "log.json"
    code = main(
        [
            "lidar",
            str(folder),
            "--model",
            str(model),
            "--out",
            str(out),
            "--json",
            str(log),
            "--device",
            "cpu",
        ]
    )
    assert code == 0
    assert "fp16 on cpu, 3 clouds" in capsys.readouterr().out
    frames = json.loads(log.read_text())["frames"]
    assert [f["name"] for f in frames] == ["a.bin", "b.npy", "c.tensor"]
    assert all(f["voxels"] > 1000 and f["shape"] == [1, 64, 9, 7] for f in frames)
    engine = SparseEngine.load(model, device="cpu")
    np.testing.assert_array_equal(read_tensor(out / "a.tensor"), engine.from_points(cloud(0)))
    batch = engine.from_points([cloud(0), cloud(1)])
    np.testing.assert_array_equal(read_tensor(out / "b.tensor"), batch[1:])
    picture = Image.open(out / "c.png")
    # 4.2 x 5.4 m: the longer side has 720 pixels; beside it the colour scale, above it the title.
    assert picture.size == (560 + 24 + 78, 720 + 52 + 12)
    assert len(picture.crop((12, 52, 572, 772)).getcolors(1 << 20) or ()) > 50


def test_picture_of_nothing():
    empty = bev_picture(np.zeros((4, 6, 8), np.float16), VoxelRules(), "nothing")
    assert empty.size[0] > 720


def test_inspect(model, tmp_path, capsys):
    assert main(["inspect", str(model)]) == 0
    out = capsys.readouterr().out
    assert "sound" in out and "21 convolutions, 0 of them int8" in out and "41 x 72 x 56" in out
    assert main(["inspect", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "lidar"
    data = bytearray(model.read_bytes())
    data[-60000] ^= 1
    (tmp_path / "hurt.s4d").write_bytes(data)
    assert main(["inspect", str(tmp_path / "hurt.s4d")]) == 1
    assert capsys.readouterr().err.startswith("error: hurt.s4d")


def test_lidar_errors(model, tmp_path, capsys):
    (tmp_path / "bad.bin").write_bytes(b"123")
    for path, word in ((tmp_path / "bad.bin", "points"), (tmp_path / "none", "found none")):
        assert main(["lidar", str(path), "--model", str(model)]) == 1
        assert word in capsys.readouterr().err
    np.zeros((9, 4), np.float32).tofile(tmp_path / "four.bin")
    command = ["lidar", str(tmp_path / "four.bin"), "--columns", "4", "--model", str(model)]
    assert main(command) == 1
    assert "at least 5 values" in capsys.readouterr().err
    assert main(["lidar", str(tmp_path)]) == 2


def test_camera_commands_say_what_a_lidar_model_is(model, capsys):
    assert main(["bench", str(model)]) == 1
    assert "LiDAR encoder; `s4d-run lidar`" in capsys.readouterr().err


def test_compare(tmp_path, capsys):
    rng = np.random.default_rng(0)
    sites = np.stack([np.zeros(50), *np.unravel_index(rng.permutation(900)[:50], (9, 10, 10))], 1)
    rows = rng.standard_normal((50, 4)).astype(np.float32)
    order = rng.permutation(50)
    for name, array in (("f", rows), ("i", sites.astype(np.int32)), ("g", rows[order] + 1e-4),
                        ("j", sites[order].astype(np.int32))):  # fmt: skip
        write_tensor(tmp_path / f"{name}.tensor", array)
    np.save(tmp_path / "f.npy", rows)

    def run(*arguments):
        return main(["compare", *(str(tmp_path / a) if a[0] != "-" and a[0].isalpha() else a
                                  for a in arguments)])  # fmt: skip

    assert run("f.npy", "f.tensor", "--max-abs", "0") == 0
    assert run("g.tensor", "f.tensor", "--cosine", "0.99") == 1
    assert "cosine" in capsys.readouterr().err
    paired = (f"g.tensor:{tmp_path}/j.tensor", f"f.tensor:{tmp_path}/i.tensor")
    assert run(*paired, "--max-abs", "2e-4", "--relative", "1e-3") == 0
    assert run(*paired, "--max-abs", "1e-5") == 1
    assert run("f.tensor", "i.npy") == 1
    assert run("f.tensor", "j.tensor:") == 1
    assert main(["compare", "one"]) == 2
