"""LiDAR export: the schema, int8 files, calibration, sensitivity, QAT, the command."""

import copy
import dataclasses

import numpy as np
import onnx
import pytest
import torch
from golden_lidar import golden_file, golden_rules

from s4d_core.lidar import (
    SparseEncoderConfig,
    build_encoder,
    convert_encoder_state,
    fold_batchnorm,
    save_encoder,
)
from s4d_export.cli import main
from s4d_export.errors import ExportError, QuantizationError
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
from s4d_runtime.lidar import SparseEngine, VoxelRules, read_lidar_artifact

CONFIG = SparseEncoderConfig(
    "held", widths=(4, 8, 16, 32), out_channels=32, grid_shape=(41, 72, 56)
)
TINY = SparseEncoderConfig(
    "tiny", 5, (8, 16), 1, 16, (11, 24, 20), "zyx", ((1, 1, 1),), block_bias=True
)
XYZ = dataclasses.replace(TINY, name="xyz", grid_shape=(20, 24, 11), index_order="xyz")


def frame(config, seed=0, count=400, batch=1):
    rng = np.random.default_rng(seed)
    keys = rng.permutation(batch * int(np.prod(config.grid_shape)))[:count]
    rows = np.stack(np.unravel_index(keys, (batch, *config.grid_shape)), 1).astype(np.int32)
    features = rng.standard_normal((count, 5)).astype(np.float16)
    return CalibrationFrame(features, rows, batch)


def trained(config, seed=0):
    """An encoder with running statistics that are not the initial ones, folded."""
    torch.manual_seed(seed)
    encoder = build_encoder(config)
    for index in range(3):
        data = frame(config, 100 + index, 600, 2)
        encoder(torch.from_numpy(data.features).float(), torch.from_numpy(data.indices), 2)
    return fold_batchnorm(encoder)


@pytest.fixture(scope="module")
def tiny():
    return trained(TINY)


@pytest.fixture(scope="module")
def held():
    """The encoder of the golden example file, folded in float64 as that file was."""
    rules = golden_rules()
    state = rules.state_dict(CONFIG.widths, prefix="heldout/")
    encoder = build_encoder(CONFIG)
    encoder.load_state_dict(
        convert_encoder_state({k: torch.from_numpy(v) for k, v in state.items()}, CONFIG)
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


def test_errors_are_named(tiny, tmp_path):
    with pytest.raises(ExportError, match="fold"):
        encoder_to_onnx(build_encoder(TINY))
    with pytest.raises(ExportError, match=r"\.s4d or \.onnx"):
        export_encoder(tiny, tmp_path / "a.bin")
    with pytest.raises(ExportError, match="order"):
        export_encoder(tiny, tmp_path / "a.s4d", voxel_rules=VoxelRules(index_order="xyz"))
    with pytest.raises(QuantizationError, match="at least one"):
        calibrate(tiny, [])
    with pytest.raises(QuantizationError, match="no layer"):
        calibrate(tiny, [frame(TINY)], half=["conv99"])
    with pytest.raises(QuantizationError, match="method"):
        calibrate(tiny, [frame(TINY)], method="entropy")
    with pytest.raises(QuantizationError, match="no usable range"):
        encoder_to_onnx(tiny, Ranges())
    empty = CalibrationFrame(np.zeros((0, 5), np.float32), np.zeros((0, 4), np.int32))
    with pytest.raises(QuantizationError, match="no usable range"):
        calibrate(tiny, [empty])
    large = copy.deepcopy(tiny)
    large.stem.conv.weight.data *= 1e6
    with pytest.raises(ExportError, match="half"):
        encoder_to_onnx(large)


def test_command(tiny, tmp_path, capsys):
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
    assert main([*common, "-o", str(out), "--sensitivity"]) == 0
    assert "conv0" in capsys.readouterr().out
    assert main(["lidar", str(save), "-o", str(out), "--precision", "int8"]) == 1
    assert "calibrate" in capsys.readouterr().err
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
