"""LiDAR export: the schema, files in fp16 and int8."""

import copy

import numpy as np
import onnx
import pytest
import torch
from golden_lidar import golden_file, golden_rules
from lidar_encoders import HELD, TINY, XYZ, frame, trained

from s4d_core.lidar import (
    SparseEncoderConfig,
    build_encoder,
    convert_encoder_state,
    fold_batchnorm,
)
from s4d_export.errors import ExportError
from s4d_export.lidar import (
    Ranges,
    calibrate,
    encoder_layers,
    encoder_to_onnx,
    export_encoder,
    prepare_qat,
    verify_export,
)
from s4d_runtime.lidar import SparseEngine, VoxelRules, read_lidar_artifact


@pytest.fixture(scope="module")
def tiny():
    return trained(TINY)


@pytest.fixture(scope="module")
def held():
    """The encoder of the golden example file, folded in float64 as that file was."""
    rules = golden_rules()
    state = rules.state_dict(HELD.widths, prefix="heldout/")
    encoder = build_encoder(HELD)
    encoder.load_state_dict(
        convert_encoder_state({k: torch.from_numpy(v) for k, v in state.items()}, HELD)
    )
    return fold_batchnorm(encoder.double()).double()


def attributes(node):
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def test_schema_equals_the_example_file(held):
    """Node by node: types, names, connections, attributes, weights bit for bit."""
    ours = encoder_to_onnx(held)
    example = onnx.load(golden_file("example_scn_small_fp16.onnx"))
    assert [n.op_type for n in ours.graph.node] == [n.op_type for n in example.graph.node]
    for a, b in zip(ours.graph.node, example.graph.node, strict=True):
        assert (a.name, list(a.input), list(a.output)) == (b.name, list(b.input), list(b.output))
        left, right = attributes(a), attributes(b)
        for name in ("input_shape", "output_shape"):  # voxel counts of the exporter's sample
            if a.op_type == "SparseConvolution":
                right.pop(name, None)
        if a.op_type == "ScatterDense":
            left.pop("output_layout")  # our default, written out
        assert left == right, a.name
    theirs = {t.name: onnx.numpy_helper.to_array(t) for t in example.graph.initializer}
    assert len(ours.graph.initializer) == len(theirs) == 42
    for tensor in ours.graph.initializer:
        assert tensor.data_type == onnx.TensorProto.FLOAT16 and tensor.HasField("raw_data")
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), theirs[tensor.name])
    assert ours.opset_import[0].version == example.opset_import[0].version
    assert [v.name for v in ours.graph.input] == ["0"] and ours.graph.output[0].name == "39"


@pytest.mark.parametrize("suffix", [".s4d", ".onnx"])
@pytest.mark.parametrize("config", [TINY, XYZ])
def test_fp16_file_computes_the_encoder(config, suffix, tmp_path):
    encoder = trained(config)
    path = export_encoder(encoder, tmp_path / f"a{suffix}")
    for precision, limit in (("fp32", 1e-3), ("fp16", 3e-3)):
        results = verify_export(encoder, path, [frame(config), frame(config, 1, 700, 2)], precision)
        assert all(r.relative <= limit for r in results)
    engine = SparseEngine.load(path)
    assert engine.graph.grid_shape == config.grid_shape and engine.precision == "fp16"
    assert engine.voxel_rules.index_order == config.index_order
    if suffix == ".s4d":
        manifest, _ = read_lidar_artifact(path)
        assert SparseEncoderConfig.from_dict(manifest.model) == config


def test_int8_file(tiny, tmp_path):
    frames = [frame(TINY, seed) for seed in range(4)]
    ranges = calibrate(tiny, frames)
    assert ranges.half == {"conv0", "conv1", "conv2", "add0"}
    path = export_encoder(tiny, tmp_path / "a.s4d", ranges)
    engine = SparseEngine.load(path)
    assert engine.precision == "int8"
    marks = {n.name: attributes(n) for n in encoder_to_onnx(tiny, ranges).graph.node}
    convolutions = [n for n in marks if n.startswith("conv")]
    assert [marks[n]["precision"] for n in convolutions] == [b"fp16"] * 3 + [b"int8"] * 4
    assert marks["conv0"]["output_precision"] == b"fp16"
    assert marks["add0"]["precision"] == b"fp16" and marks["add0"]["output_precision"] == b"int8"
    last = max((n for n in marks if n.startswith("conv")), key=lambda n: int(n[4:]))
    assert marks[last]["output_precision"] == b"fp16"
    assert marks[last]["precision"] == b"int8"
    # The engine computes what the fake quantisers do, and both are near the float encoder.
    prepared = prepare_qat(copy.deepcopy(tiny), ranges)
    fake = verify_export(prepared, path, frames)
    plain = verify_export(tiny, path, frames)
    assert all(r.relative <= 0.02 for r in fake)
    assert all(0.005 <= r.relative <= 0.1 for r in plain)
    assert max(r.relative for r in fake) < min(r.relative for r in plain)


def test_precision_marks_of_the_qat_exporter(held):
    """The marks that the golden README lists for CenterPoint."""
    encoder = copy.deepcopy(held).float()
    layers = encoder_layers(encoder)
    ranges = Ranges(
        {layer.name: 1.0 for layer in layers if layer.name.startswith("conv")},
        {layer.name: (1.0, 1.0) for layer in layers if layer.name.startswith("add")},
        half=frozenset({"conv0", "conv1", "conv2", "add0"}),
    )
    nodes = [n for n in encoder_to_onnx(encoder, ranges).graph.node if n.name[:3] in ("con", "add")]
    marks = {
        n.name: (attributes(n)["precision"].decode(), attributes(n)["output_precision"].decode())
        for n in nodes
    }
    for index in range(21):
        want = ("fp16" if index < 3 else "int8", "fp16" if index in (0, 1, 2, 20) else "int8")
        assert marks[f"conv{index}"] == want
    for index in range(8):
        assert marks[f"add{index}"] == ("int8" if index else "fp16", "int8")


def test_impossible_files_are_named(tiny, tmp_path):
    with pytest.raises(ExportError, match="fold"):
        encoder_to_onnx(build_encoder(TINY))
    with pytest.raises(ExportError, match=r"\.s4d or \.onnx"):
        export_encoder(tiny, tmp_path / "a.bin")
    with pytest.raises(ExportError, match="order"):
        export_encoder(tiny, tmp_path / "a.s4d", voxel_rules=VoxelRules(index_order="xyz"))
    large = copy.deepcopy(tiny)
    large.stem.conv.weight.data *= 1e6
    with pytest.raises(ExportError, match="half"):
        encoder_to_onnx(large)
