"""Stages, the first diverging tensor, and several artifacts and engines in one examination."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from s4d_export import build_manifest, random_frames, save_artifact, to_half
from s4d_export.cli import main
from s4d_export.errors import GraphError, VerificationError
from s4d_export.graph.nearness import relative_error
from s4d_export.graph.session import GraphSession
from s4d_export.inspection import load_graph
from s4d_export.verification.comparison import TOLERANCES
from s4d_export.verification.divergence import LIMITS, first_divergence
from s4d_export.verification.report import format_examination
from s4d_export.verification.rollout import record_feeds
from s4d_export.verification.runs import examine
from s4d_export.verification.stages import compare_stages, stage_modules, stage_tensors
from s4d_runtime.backends import BACKENDS


@pytest.fixture(scope="module")
def plain(exported):
    return load_graph(exported.artifacts["plugin"])[0]


@pytest.fixture(scope="module")
def feeds(exported, plain):
    config = exported.model.config
    return record_feeds(plain, config, random_frames(config, 3))


def edited(plain, change):
    model = onnx.ModelProto()
    model.CopyFrom(plain)
    change(model.graph)
    return model


def scale_weight(graph, name="backbone.layer3.0.conv2.weight", factor=1.3):
    weight = next(value for value in graph.initializer if value.name == name)
    values = numpy_helper.to_array(weight) * np.float32(factor)
    weight.CopyFrom(numpy_helper.from_array(values, name))


def test_nearness():
    rows = np.random.default_rng(0).normal(size=(1, 20, 4))
    assert relative_error(rows, rows) == 0
    assert relative_error(rows[:, ::-1], rows) == pytest.approx(0, abs=1e-12)  # another order
    assert relative_error(rows * 1.1, rows) == pytest.approx(0.1)
    assert relative_error(rows[..., None] * 1.1, rows[..., None]) == pytest.approx(0.1)
    vector = np.random.default_rng(1).normal(size=(1, 30))
    assert relative_error(vector[:, ::-1], vector) == pytest.approx(0, abs=1e-12)
    maps = np.random.default_rng(2).normal(size=(6, 4, 5, 5))
    assert relative_error(maps[::-1], maps) > 1  # cameras have their place
    assert relative_error(np.full(3, np.nan), np.ones(3)) == np.inf
    assert relative_error(np.ones(3), np.ones(4)) == np.inf
    assert relative_error(np.full(3, 0.5), np.zeros(3)) == 0.5


def test_stages_of_float32_and_half(exported, plain):
    model = exported.model
    paths = stage_modules(model)
    assert paths[:4] == [f"backbone.layer{i}.0" for i in range(1, 5)]
    assert paths[4:8] == [f"neck.output.{i}" for i in range(4)]
    assert paths[8:10] == ["head.layers.0.ffn_norm", "head.layers.0.refinement"]
    frames = list(random_frames(model.config, 4))
    full = compare_stages(model, plain, frames, TOLERANCES["fp32"])
    half = compare_stages(model, to_half(plain), frames, TOLERANCES["fp16"])
    assert [row["stage"] for row in full] == [row["stage"] for row in half] == paths
    for row in full:
        assert row["max"] < 1e-3 and row["cosine"] > 1 - 1e-6, row
        assert row.get("unmatched", 0) == 0
    for row, exact in zip(half, full, strict=True):
        assert exact["max"] < row["max"] and row["cosine"] > 0.999, row
        assert row["p99.9"] <= row["max"]
    with pytest.raises(VerificationError, match=r"backbone\.nothing"):
        stage_tensors(plain, {"backbone.nothing": (1,)})


def test_the_first_diverging_tensor(plain, feeds):
    assert first_divergence(plain, plain, feeds[1], LIMITS["fp32"]) is None
    assert first_divergence(plain, to_half(plain), feeds[1], LIMITS["fp16"]) is None
    found = first_divergence(plain, edited(plain, scale_weight), feeds[0], LIMITS["fp32"])
    assert found["node"] == "backbone.layer3.0.conv2/Conv"
    assert found["module"] == "backbone.layer3.0.conv2" and found["error"] > 0.1
    assert all(error == 0 for error in found["inputs"].values()) and found["inputs"]
    assert "backbone.layer3.0.conv2.weight" in found["changed"][0]

    def other_operator(graph):
        node = next(n for n in graph.node if n.name == "backbone.layer2.0.relu/Relu_2")
        node.op_type = "Softplus"

    found = first_divergence(plain, edited(plain, other_operator), feeds[0], LIMITS["fp32"])
    assert found["node"] == "backbone.layer2.0.relu/Relu_2"
    assert found["changed"] == ["the operator was Relu"]


def test_an_examination_of_several_artifacts_and_engines(exported, plain, tmp_path, capsys):
    config = exported.model.config
    bad = tmp_path / "edited.s4d"
    manifest = build_manifest(config, "edited", "plugin", "fp32")
    save_artifact(bad, edited(plain, scale_weight), manifest)
    good = exported.artifacts["plugin"]
    figures = tmp_path / "figures.json"
    command = ["verify", str(exported.checkpoint), str(good), str(bad), "--frames", "3"]
    command += ["--backend", "all", "--stages", "--first-divergence", "--json", str(figures)]
    assert main(command) == 1
    out = capsys.readouterr().out
    assert "first diverging tensor (frame 0): backbone.layer3.0.conv2/Conv" in out
    assert "no tensor diverges" in out and "neck.output.3" in out
    result = json.loads(figures.read_text())
    engines = {run["candidate"] for run in result["runs"]}
    assert "onnxruntime-cpu" in engines and engines <= {backend.name for backend in BACKENDS}
    first, *_, last = result["runs"]
    assert first["passed"] and first["divergence"] is None
    assert not last["passed"] and not result["passed"]
    wrong = {row["stage"]: row for row in last["stages"]}
    assert wrong["backbone.layer2.0"]["max"] < 1e-3 < wrong["backbone.layer3.0"]["max"]


def test_several_engines_by_name(exported):
    frames = list(random_frames(exported.model.config, 3))
    artifacts = [exported.artifacts["plugin"], exported.artifacts["standard"]]
    result = examine(exported.model, artifacts, frames, ["onnxruntime-cpu", "auto"])
    assert result["passed"] and len(result["runs"]) == 4
    assert len({run["reference"] for run in result["runs"]}) == 1
    text = format_examination(result)
    assert text.count("PASSED") == 4


def test_an_unknown_operator_is_one_sentence(exported, plain, feeds, tmp_path, capsys):
    def unknown(graph):
        graph.node[20].op_type = "Frobnicate"

    model = edited(plain, unknown)
    with pytest.raises(GraphError, match="refused the graph"):
        GraphSession(model)
    path = tmp_path / "unknown.s4d"
    save_artifact(path, model, build_manifest(exported.model.config, "u", "plugin", "fp32"))
    for command in (
        ["verify", str(exported.checkpoint), str(path), "--frames", "1"],
        ["inspect", str(path)],
        ["quantize", str(path), "--random", "--frames", "1", "-o", str(tmp_path / "q.s4d")],
        ["overflow", str(path), "--frames", "1"],
    ):
        assert main(command) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and "Frobnicate" in error and error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["unknown.s4d"]


def test_a_graph_edited_into_nonsense_is_one_sentence(exported, plain, tmp_path, capsys):
    """A dangling input, and a contradiction of shapes."""

    def dangling(graph):
        graph.node[30].input[0] = "nowhere"

    def contradiction(graph):
        node = next(n for n in graph.node if n.op_type == "Transpose")
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("perm", [0, 1]))

    for number, change in enumerate((dangling, contradiction)):
        path = tmp_path / f"{number}.s4d"
        manifest = build_manifest(exported.model.config, "n", "plugin", "fp32")
        save_artifact(path, edited(plain, change), manifest)
        for command in (
            ["verify", str(exported.checkpoint), str(path), "--frames", "1"],
            ["quantize", str(path), "--random", "--frames", "1", "-o", str(tmp_path / "q.s4d")],
        ):
            assert main(command) == 1
            error = capsys.readouterr().err
            assert error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "q.s4d").exists()
