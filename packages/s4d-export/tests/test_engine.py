"""TensorRT engines: built where a TensorRT is, refused with one sentence where none is.

`S4D_TRT_AOT` names a folder of TensorRT libraries that build without a GPU; without it, and
without the package tensorrt, only the refusals are tested.
"""

from __future__ import annotations

import importlib.util
import os

import msgspec
import pytest

from s4d_export import build_manifest, save_artifact, to_half
from s4d_export.cli import main
from s4d_export.engine.build import BuildOptions, build_engine
from s4d_export.errors import EngineBuildError
from s4d_export.inspection import load_graph
from s4d_export.int8.calibration import calibrate
from s4d_export.int8.images import random_images
from s4d_export.int8.quantize import find_points, to_int8
from s4d_runtime.artifact import read_artifact, write_artifact


@pytest.fixture
def tensorrt(monkeypatch):
    folder = os.environ.get("S4D_TRT_AOT")
    if folder:
        monkeypatch.setenv("LD_LIBRARY_PATH", folder)
    elif importlib.util.find_spec("tensorrt") is None:
        pytest.skip("no TensorRT: set S4D_TRT_AOT or install tensorrt")


# All that TensorRT 11.4's parser and builder say about any graph of these tests.
KNOWN_WARNINGS = {
    "fp32": (),
    "fp16": (),
    "int8": (),
    "int8+fp16": (
        "(foreignNode) Converting conv activation scales to fp32.",
        "(foreignNode) Converting conv weight scales to fp32.",
    ),
}


def in_precision(exported, precision, folder):
    """The standard-operator artifact in a precision."""
    source = exported.artifacts["standard"]
    if precision == "fp32":
        return source
    plain = model = load_graph(source)[0]
    if precision.endswith("fp16"):
        model = to_half(model)
    if precision.startswith("int8"):
        config = exported.model.config
        tensors = [point.tensor for point in find_points(plain)]
        ranges = calibrate(plain, tensors, config, random_images(config, 1))
        model = to_int8(model, ranges, reference=plain)
    path = folder / "source.s4d"
    name = precision.partition("+")[0]
    save_artifact(path, model, build_manifest(exported.model.config, "x", "standard", name))
    return path


@pytest.mark.parametrize("precision", KNOWN_WARNINGS)
def test_standard_graph_becomes_an_engine(exported, tensorrt, tmp_path, precision):
    source = in_precision(exported, precision, tmp_path)
    log = build_engine(source, tmp_path / "engine.s4d", BuildOptions("x86", 512))
    assert {text.strip() for text in log["warnings"]} == set(KNOWN_WARNINGS[precision])
    types = {kind for layer in log["layers"] for kind in layer["types"]}
    assert ("HALF" in types) == ("fp16" in precision) and "FLOAT" in types
    kinds = [layer["kind"] for layer in log["layers"]]
    assert kinds.count("QUANTIZE") == (14 if "int8" in precision else 0)
    assert ("INT8" in types) == ("int8" in precision)
    convolutions = [layer for layer in log["layers"] if layer["kind"] == "CONVOLUTION"]
    assert len(convolutions) >= 15 and "backbone.conv1/Conv" in convolutions[0]["name"]
    with read_artifact(tmp_path / "engine.s4d") as engine:
        assert engine.manifest.kind == "engine"
        assert engine.manifest.precision == precision.partition("+")[0]
        assert len(engine.read_model()) > 1_000_000
        assert engine.manifest.versions["tensorrt"] == log["tensorrt"]
        assert "build_log.json" in engine.names()


def fake_tensorrt(folder, monkeypatch, code):
    for name in ("tensorrt", "tensorrt_bindings"):
        (folder / f"{name}.py").write_text(code)
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise ImportError('libnvinfer.so: no such file')", "TensorRT is not usable here"),
        ("import os; os.abort()", "ended its process"),
    ],
)
def test_refusals(exported, tmp_path, monkeypatch, capsys, code, words):
    (tmp_path / "fake").mkdir()
    fake_tensorrt(tmp_path / "fake", monkeypatch, code)
    command = ["engine", str(exported.artifacts["standard"]), "-o", str(tmp_path / "e.s4d")]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1
    assert not (tmp_path / "e.s4d").exists()


def test_targets(exported, tmp_path, monkeypatch, capsys):
    artifact = str(exported.artifacts["standard"])
    command = ["engine", artifact, "-o", str(tmp_path / "e.s4d"), "--target"]
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for name, words in (("orin-jetpack6", "is built there"), ("orinn", "expected a target of")):
        assert main([*command, name]) == 1
        error = capsys.readouterr().err
        assert words in error and error.startswith("error: ") and error.count("\n") == 1
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    (tmp_path / "fake").mkdir()
    fake_tensorrt(tmp_path / "fake", monkeypatch, "__version__ = '11.4.1'")
    assert main([*command, "orin-jetpack6"]) == 1
    assert "expected TensorRT 10 for orin-jetpack6, got 11.4.1" in capsys.readouterr().err
    assert not (tmp_path / "e.s4d").exists()


def test_an_engine_is_no_source(exported, tmp_path):
    with read_artifact(exported.artifacts["standard"]) as opened:
        manifest = msgspec.structs.replace(opened.manifest, kind="engine")
    path = write_artifact(tmp_path / "engine.s4d", manifest, {"model.engine": b"an engine"})
    with pytest.raises(EngineBuildError, match="holds an engine"):
        build_engine(path, tmp_path / "again.s4d")
