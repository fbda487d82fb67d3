"""ONNX reader, artifacts, tensor files, comparison: good files, and every kind of bad one."""

import contextlib
import struct

import numpy as np
import pytest
from golden_lidar import DATA, golden
from hypothesis import given, settings
from hypothesis import strategies as st
from lidar_reference import example_path

from s4d_runtime.errors import (
    ArtifactError,
    ArtifactHashError,
    ArtifactMemberError,
    ManifestError,
    S4DError,
)
from s4d_runtime.lidar import (
    LidarManifest,
    OnnxFileError,
    SparseEngine,
    TensorFileError,
    VoxelRules,
    compare,
    read_lidar_artifact,
    read_tensor,
    write_lidar_artifact,
    write_tensor,
)
from s4d_runtime.lidar.onnx_file import parse_onnx, read_onnx


def varint(n: int) -> bytes:
    out = b""
    while True:
        n, low = n >> 7, n & 0x7F
        out += bytes([low | (0x80 if n else 0)])
        if not n:
            return out


def message(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body


def test_reader_on_the_example():
    graph = read_onnx(example_path())
    assert len(graph.nodes) == 39 and graph.inputs == ["0"] and graph.outputs == ["39"]
    assert len(graph.weights) == 42
    weight = graph.weights["spconv0.weight"]
    assert weight.shape == (4, 3, 3, 3, 5) and weight.dtype == np.float16
    conv = graph.nodes[0]
    assert conv.op_type == "SparseConvolution" and conv.attributes["rulebook"] == "res0"
    assert conv.attributes["input_spatial_shape"] == [41, 72, 56]
    assert conv.attributes["inverse"] == 0


def test_reader_takes_every_way_to_store_a_number():
    packed = message(8, varint(3) + varint(5))
    loose = varint(8 << 3) + varint(3) + varint(8 << 3) + varint((1 << 64) - 7)
    floats = message(7, struct.pack("<2f", 1.5, -2.0))
    single = varint(2 << 3 | 5) + struct.pack("<f", 0.25)
    attributes = b"".join(
        message(5, message(1, name) + body)
        for name, body in (
            (b"packed", packed),
            (b"loose", loose),
            (b"floats", floats),
            (b"single", single),
            (b"empty", varint(20 << 3) + varint(2)),
            (b"none", varint(20 << 3) + varint(7)),
        )
    )
    halves = np.array([1.5, -2.0], np.float16).view(np.uint16)
    tensor = message(8, b"w") + varint(1 << 3) + varint(2) + varint(2 << 3) + varint(10)
    tensor += message(5, b"".join(varint(int(h)) for h in halves))
    node = message(1, message(4, b"Op") + attributes)
    graph = parse_onnx(message(7, node + message(5, tensor)))
    assert graph.nodes[0].attributes == {
        "packed": [3, 5], "loose": [3, -7], "floats": [1.5, -2.0], "single": 0.25, "empty": 0,
        "none": [],
    }  # fmt: skip
    np.testing.assert_array_equal(graph.weights["w"], np.array([1.5, -2.0], np.float16))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "no graph"),
        (b"\x00", "field number 0"),
        (b"\xff" * 11, "64 bits"),
        (b"\x80", "ends inside"),
        (varint(7 << 3 | 3), "wire type"),
        (varint(7 << 3 | 2) + varint(1 << 40), "cut short"),
        (varint(7 << 3) + varint(4), "stored as a number"),
        (message(7, message(1, message(4, b"\xff\xfe"))), "UTF-8"),
        (message(7, message(5, message(8, b"w"))), "element type 0"),
        (message(7, message(5, message(13, b""))), "outside the file"),
        (
            message(7, message(5, varint(1 << 3) + varint(1 << 40) + varint(2 << 3) + varint(1)
                               + message(9, b"1234"))),
            "needs",
        ),
        (message(7, message(5, message(4, b"123"))), "4-byte"),
    ],
)  # fmt: skip
def test_malformed_files_are_named(data, match):
    with pytest.raises(OnnxFileError, match=match):
        parse_onnx(data)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_files_never_crash(data):
    """Cut or changed bytes give a graph or a named error, nothing else."""
    whole = example_path().read_bytes()
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    # Most of the file is weights; damage the structure around them.
    for _ in range(data.draw(st.integers(0, 8))):
        if damaged:
            at = data.draw(st.integers(0, min(len(damaged), 6000) - 1))
            damaged[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(OnnxFileError):
        parse_onnx(bytes(damaged))


def manifest() -> LidarManifest:
    return LidarManifest(
        name="small", created="2026-01-01T00:00:00Z", versions={"s4d-export": "0.1.0"},
        model={"name": "small"}, precision="fp16", voxel_rules=VoxelRules(max_points=7),
    )  # fmt: skip


def test_artifact(tmp_path):
    model = example_path().read_bytes()
    path = write_lidar_artifact(tmp_path / "a.s4d", manifest(), {"model.onnx": model})
    read, members = read_lidar_artifact(path)
    assert members == {"model.onnx": model} and read.voxel_rules.max_points == 7
    engine = SparseEngine.load(path)
    assert engine.voxel_rules.max_points == 7
    data = golden("example_scn_small_fp16.npz")
    features, indices = data["in/feat_fp16"], data["in/idx"]
    np.testing.assert_array_equal(
        engine(features, indices), SparseEngine.load(example_path())(features, indices)
    )


def test_bad_artifacts_are_named(tmp_path):
    model = example_path().read_bytes()
    path = write_lidar_artifact(tmp_path / "a.s4d", manifest(), {"model.onnx": model})
    data = path.read_bytes()
    bad = tmp_path / "bad.s4d"
    bad.write_bytes(data[:-30])
    with pytest.raises(ArtifactError, match=r"bad\.s4d"):
        SparseEngine.load(bad)
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    bad.write_bytes(changed)
    with pytest.raises((ArtifactHashError, ArtifactError)):
        SparseEngine.load(bad)
    with pytest.raises(ArtifactMemberError):
        write_lidar_artifact(bad, manifest(), {"other": b""})
    with pytest.raises(OnnxFileError):
        write_lidar_artifact(bad, manifest(), {"model.onnx": b"\x00"})
    with pytest.raises(OnnxFileError, match="cannot read"):
        SparseEngine.load(tmp_path / "absent.onnx")
    text = data.replace(b'"kind": "lidar"', b'"kind": "radar"')
    assert text != data
    bad.write_bytes(text)
    with pytest.raises(ArtifactError):
        SparseEngine.load(bad)
    with pytest.raises(S4DError, match="voxel rules"):
        VoxelRules.from_json('{"lower": 3}')
    assert issubclass(ManifestError, ArtifactError)


@pytest.mark.parametrize("dtype", ["i4", "f2", "f4", "i8", "u8", "u4", "i1", "u1", ">f4", "f8"])
def test_tensor_files(tmp_path, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    path = tmp_path / "a.tensor"
    if dtype == "f8":
        with pytest.raises(TensorFileError, match="cannot write"):
            write_tensor(path, array)
        return
    write_tensor(path, array)
    again = read_tensor(path)
    np.testing.assert_array_equal(again, array)
    assert again.dtype == array.dtype.newbyteorder("<")


def test_bad_tensor_files_are_named(tmp_path):
    path = write_tensor(tmp_path / "a.tensor", np.ones((2, 3), np.float16))
    data = path.read_bytes()
    for content, match in (
        (data[:-1], "needs"),
        (data + b"1", "needs"),
        (data[:9], "magic"),
        (b"1234" + data[4:], "magic"),
        (data[:8] + struct.pack("<i", 0) + data[12:], "CUDA-CenterPoint"),
        (data[:8] + struct.pack("<i", 99) + data[12:], "code 99"),
        (data[:4] + struct.pack("<i", 99) + data[8:], "dimensions"),
        (data[:12] + struct.pack("<i", -2) + data[16:], "needs"),
    ):
        path.write_bytes(content)
        with pytest.raises(TensorFileError, match=match):
            read_tensor(path)


def test_tensor_files_of_the_real_cloud():
    path = DATA / "centerpoint-voxels.indices-zyx.int32.tensor"
    if not path.exists():
        pytest.skip("no real cloud under S4D_SHARED")
    assert read_tensor(path).shape == (79745, 4)


def test_comparison():
    rng = np.random.default_rng(0)
    b = rng.standard_normal((3, 40)).astype(np.float32)
    a = b.copy()
    a[0, :4] += [1.0, 0.6, 0.3, -0.1]
    result = compare(a, b)
    assert result.above == (1, 2, 3) and result.equal == pytest.approx(116 / 120)
    assert result.difference[0] == pytest.approx(1, rel=1e-6)
    assert result.failures(max_abs=1.1, relative=0.5, cosine=0.5) == []
    assert len(result.failures(max_abs=0.9, relative=0.01, cosine=0.9999)) == 3
    assert "cosine" in result.table()
    a[1, 1] = np.nan
    assert len(compare(a, b).failures(max_abs=9e9, relative=9e9, cosine=-2)) == 3
    with pytest.raises(S4DError, match="one shape"):
        compare(a, b[:2])
