"""Eight bits: ranges, explicit Q/DQ in the graph, closeness, cached calibration, and refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from s4d_export import QuantizationError, build_manifest, check_graph, graph_contract, to_half
from s4d_export.cli import main
from s4d_export.graph.session import GraphSession
from s4d_export.graph.surgery import extract, feature_tensors
from s4d_export.inspection import load_graph
from s4d_export.int8.calibration import Calibration, calibrate, load_calibration
from s4d_export.int8.histogram import METHODS, Histogram
from s4d_export.int8.images import dataset_images, random_images
from s4d_export.int8.quantize import find_points, quantise_weight, to_int8
from s4d_export.int8.sensitivity import sensitivity
from s4d_runtime.artifact import read_artifact


@pytest.fixture(scope="module")
def plain(exported):
    return load_graph(exported.artifacts["plugin"])[0]


@pytest.fixture(scope="module")
def images(exported):
    return list(random_images(exported.model.config, 3))


@pytest.fixture(scope="module")
def calibration(exported, plain, images):
    tensors = [point.tensor for point in find_points(plain)]
    return calibrate(plain, tensors, exported.model.config, images, source="random pictures")


def test_ranges_of_known_distributions():
    rng = np.random.default_rng(0)
    values = np.append(np.abs(rng.standard_normal(1_000_000)), 9.0).astype(np.float32)
    histogram = Histogram()
    for part in np.array_split(values, 7):  # the width grows from part to part
        histogram.add(part)
    ranges = {method: histogram.amax(method) for method in METHODS}
    assert ranges["max"] == 9.0
    assert ranges["percentile"] == pytest.approx(np.quantile(values, 0.9999), rel=0.02)

    def cost(amax):
        stored = np.minimum(np.rint(values * (127 / amax)), 127) * (amax / 127)
        return float(np.square(values - stored).sum())

    # The largest value stands alone and would waste half of the steps.
    best = min(np.linspace(1, 9, 200), key=cost)
    assert cost(ranges["mse"]) < 1.02 * cost(best) < 0.5 * cost(9.0)
    assert 2 < ranges["entropy"] < 6
    rectified = Histogram()  # nine of ten values are zero, as after a ReLU: they decide nothing
    rectified.add(np.concatenate([values, np.zeros(9 * len(values), np.float32)]))
    assert rectified.amax("entropy") == pytest.approx(ranges["entropy"], rel=0.1)
    uniform = Histogram()
    uniform.add(rng.uniform(0, 1, 100_000))
    for method in METHODS:
        assert uniform.amax(method) == pytest.approx(1, abs=0.06), method


def test_empty_and_broken_values():
    histogram = Histogram()
    histogram.add(np.zeros(10))
    assert [histogram.amax(method) for method in METHODS] == [0.0] * len(METHODS)
    with pytest.raises(QuantizationError, match="NaN or infinite"):
        histogram.add(np.array([1.0, np.nan]))


def test_weights_per_channel():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    weight[1] *= 100
    weight[2] = 0
    scale, stored = quantise_weight(weight)
    assert stored.dtype == np.int8 and np.abs(stored).max(axis=(1, 2, 3)).tolist() == [
        127,
        127,
        0,
        127,
    ]
    error = np.abs(stored * scale[:, None, None, None] - weight).max(axis=(1, 2, 3))
    assert (error <= scale / 2 * 1.0001).all()
    # Folding a norm scales a channel: the stored integers stay the same.
    again = quantise_weight(weight * np.array([2.0, -0.3, 1, 7]).reshape(-1, 1, 1, 1))[1]
    assert (np.abs(again) == np.abs(stored)).all()
    tiny = quantise_weight(weight * 1e-6, TensorProto.FLOAT16)[0]
    assert (tiny >= 2.0**-14).all()


def test_every_convolution_reads_eight_bits(exported, plain, calibration):
    quantised = to_int8(plain, calibration)
    check_graph(quantised, graph_contract(exported.model.config), "plugin")
    made = {name: node for node in quantised.graph.node for name in node.output}
    stored = {value.name: value for value in quantised.graph.initializer}
    convolutions = [node for node in quantised.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 20  # 9 + 3 projections of the backbone, 8 of the neck
    for node in convolutions:
        source, weight = made[node.input[0]], made[node.input[1]]
        assert source.op_type == weight.op_type == "DequantizeLinear", node.name
        assert made[source.input[0]].op_type == "QuantizeLinear"
        values = stored[weight.input[0]]
        assert values.data_type == TensorProto.INT8
        scales = numpy_helper.to_array(stored[weight.input[1]])
        assert scales.shape == (values.dims[0],) and len(set(scales.tolist())) > 1
        for entry in (*source.input[2:], *weight.input[2:]):
            assert not numpy_helper.to_array(stored[entry]).any()  # symmetric
    pairs = [node for node in quantised.graph.node if node.op_type == "QuantizeLinear"]
    assert len({node.input[0] for node in pairs}) == len(pairs)  # no tensor is quantised twice
    shortcuts = [
        node.name
        for node in quantised.graph.node
        if node.op_type == "Add" and any(made.get(n) in pairs for n in node.input)
    ]
    assert shortcuts == []
    block = next(n for n in quantised.graph.node if n.name == "backbone.layer1.0/Add")
    assert [made[name].op_type for name in block.input].count("DequantizeLinear") == 1
    assert quantised.ByteSize() < 0.85 * plain.ByteSize()


@pytest.mark.parametrize("rest", ["fp32", "fp16"])
def test_features_stay_close(plain, calibration, images, rest):
    names = feature_tensors(plain)
    frame = {"images": images[0]}
    truth = GraphSession(extract(plain, names)).run(frame)
    base = to_half(plain) if rest == "fp16" else plain
    quantised = extract(to_int8(base, calibration, reference=plain), names)
    for optimise in (True, False):  # as the engine fuses it, and node by node
        got = GraphSession(quantised, optimise=optimise).run(frame)
        for name, expected in truth.items():
            difference = np.linalg.norm(got[name].astype(np.float32) - expected)
            assert 1e-4 < difference / np.linalg.norm(expected) < 0.06, (name, optimise)


def test_exclusions_and_sensitivity(exported, plain, calibration, images):
    config = exported.model.config
    costs = sensitivity(plain, calibration, config, images[:1])
    assert len(costs) == 21 and costs[-1].node == "all layers"
    alone = [cost.error for cost in costs[:-1]]
    assert alone == sorted(alone, reverse=True) and costs[-1].error > alone[0] > alone[-1] > 0
    assert costs[-1].signal_to_noise == pytest.approx(-20 * np.log10(costs[-1].error))
    worst = [cost.node for cost in costs[:5]]
    spared = sensitivity(plain, calibration, config, images[:1], exclude=worst)
    assert spared[-1].error < costs[-1].error
    kept = to_int8(plain, calibration, exclude=["backbone.layer1*"])
    weights = {v.name for v in kept.graph.initializer if v.data_type == TensorProto.FLOAT}
    assert "backbone.layer1.0.conv1.weight" in weights
    assert "backbone.layer2.0.conv1.weight" not in weights
    with pytest.raises(QuantizationError, match=r"bakcbone\*"):
        to_int8(plain, calibration, exclude=["bakcbone*"])


def test_calibrations_are_data(plain, calibration, exported, images, tmp_path):
    assert Calibration.from_json(calibration.to_json()) == calibration
    for text in ("", "[]", "{}", calibration.to_json().replace('"format": 1', '"format": 9')):
        with pytest.raises(QuantizationError, match="calibrat"):
            Calibration.from_json(text)
    name, value = next(iter(calibration.ranges.items()))
    broken = replace(calibration, ranges={**calibration.ranges, name: -value})
    with pytest.raises(QuantizationError, match="finite ranges"):
        Calibration.from_json(broken.to_json())
    other = onnx.ModelProto()
    other.CopyFrom(plain)
    weight = next(v for v in other.graph.initializer if v.name == "backbone.conv1.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 2, weight.name))
    with pytest.raises(QuantizationError, match="another model"):
        to_int8(other, calibration)
    with pytest.raises(QuantizationError, match="no range"):
        to_int8(plain, Calibration({}, "mse", 99.99, 1, "", ""))
    with pytest.raises(QuantizationError, match="depend on"):
        calibrate(plain, ["boxes"], exported.model.config, images)


def test_frames_that_do_not_fit(exported, plain, images):
    config = exported.model.config
    tensors = [point.tensor for point in find_points(plain)]
    for wrong in (images[0][:5], images[0][:, :32], images[0].astype(np.float32)):
        with pytest.raises(QuantizationError, match="6 cameras"):
            calibrate(plain, tensors, config, [wrong])
    with pytest.raises(QuantizationError, match="at least one"):
        calibrate(plain, tensors, config, [])


@pytest.fixture
def five_cameras(keyframe, tmp_path):
    """The real keyframe without its last camera."""
    folder = tmp_path / "five"
    shutil.copytree(keyframe, folder)
    tables = folder / "v1.0-mini"
    sensors = json.loads((tables / "sensor.json").read_text())
    gone = {row["token"] for row in sensors if row["channel"] == "CAM_BACK_RIGHT"}
    calibrated = json.loads((tables / "calibrated_sensor.json").read_text())
    lost = {row["token"] for row in calibrated if row["sensor_token"] in gone}
    data = json.loads((tables / "sample_data.json").read_text())
    kept = [row for row in data if row["calibrated_sensor_token"] not in lost]
    (tables / "sample_data.json").write_text(json.dumps(kept))
    return folder


def test_a_data_set_of_the_wrong_camera_count(exported, five_cameras, tmp_path, capsys):
    output = tmp_path / "q.s4d"
    command = ["quantize", str(exported.artifacts["plugin"]), "-o", str(output)]
    assert main([*command, "--data", str(five_cameras)]) == 1
    error = capsys.readouterr().err
    assert "6 cameras" in error and "CAM_BACK_RIGHT" in error and error.count("\n") == 1
    assert not output.exists()


def test_images_of_a_data_set_and_of_its_index(exported, keyframe, tmp_path):
    config = exported.model.config
    frames = list(dataset_images(config, keyframe, 4))
    assert len(frames) == 1 and frames[0].shape == (6, 64, 176, 3) and frames[0].std() > 20
    from s4d_runtime.nuscenes import NuScenes

    dataset = NuScenes(keyframe)
    cameras = dataset.sample(dataset.scenes[0].samples[0]).cameras
    index = tmp_path / "index"
    index.mkdir()
    names = sorted(cameras)  # another order than the model's
    files = [str(cameras[name].path.relative_to(keyframe)) for name in names]
    np.save(index / "camera_file.npy", np.char.encode([files], "utf-8"))
    header = {"format": 1, "root": str(keyframe), "cameras": names}
    (index / "index.json").write_text(json.dumps(header))
    (same,) = dataset_images(config, index, 4)
    assert (same == frames[0]).all()
    (index / "index.json").write_text(json.dumps({**header, "format": 2}))
    with pytest.raises(QuantizationError, match="format 1"):
        list(dataset_images(config, index, 4))
    (index / "index.json").write_text("{")
    with pytest.raises(QuantizationError, match="no readable index"):
        list(dataset_images(config, index, 4))


def test_command_line(exported, tmp_path, capsys):
    source, first = exported.artifacts["plugin"], tmp_path / "first.s4d"
    costs = tmp_path / "costs.json"
    command = ["quantize", str(source), "-o", str(first), "--random", "--frames", "2"]
    assert main([*command, "--sensitivity", str(costs)]) == 0
    out = capsys.readouterr().out
    assert "all layers" in out and "20 convolutions in int8" in out
    assert len(json.loads(costs.read_text())) == 21
    second = tmp_path / "second.s4d"
    command = ["quantize", str(exported.checkpoint), "-o", str(second), "--calibration", str(first)]
    assert main([*command, "--exclude", "backbone.conv1*", "--rest", "fp32"]) == 0
    with read_artifact(first) as opened:
        assert opened.manifest.precision == "int8" and opened.manifest.op == "plugin"
        assert {"calibration.json", "precision_plan.json"} <= set(opened.names())
    assert load_calibration(str(first)) == load_calibration(str(second))
    assert main(["verify", str(exported.checkpoint), str(first), "--frames", "4"]) == 0
    assert "PASSED" in capsys.readouterr().out
    assert main(["inspect", str(first)]) == 0
    assert "int8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{artifact}", "-o", "x.s4d"], "either --data DIR or --random"),
        (["{artifact}", "--random"], "expected -o"),
        (["{artifact}", "-o", "x.s4d", "--random", "--frames", "0"], "at least 1"),
        (["{artifact}", "-o", "x.s4d", "--calibration", "{artifact}"], "no calibration"),
        (["{artifact}", "-o", "x.s4d", "--calibration", "none.json"], "cannot read"),
        (["{artifact}", "-o", "x.s4d", "--data", "nowhere"], "nowhere"),
        (["{artifact}", "-o", "x.s4d", "--random", "--percentile", "0"], "percentile"),
        (["{artifact}", "-o", "x.s4d", "--random", "--exclude", "nonsense"], "nonsense"),
        (["nothing", "-o", "x.s4d", "--random"], "config.json is missing"),
    ],
)
def test_errors_are_one_line(exported, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    places = {"artifact": exported.artifacts["plugin"]}
    assert main(["quantize", *(text.format(**places) for text in arguments)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_only_float32_is_a_source(exported, plain, calibration, tmp_path, capsys):
    from s4d_export import save_artifact

    path = tmp_path / "int8.s4d"
    manifest = build_manifest(exported.model.config, "q", "plugin", "int8")
    save_artifact(path, to_int8(plain, calibration), manifest)
    assert main(["quantize", str(path), "--random", "-o", str(tmp_path / "y.s4d")]) == 1
    assert "expected an fp32 ONNX artifact" in capsys.readouterr().err
