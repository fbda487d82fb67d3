"""The command line: exit codes and one-sentence errors."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

import pytest

from s4d_export.cli import main


def test_onnx_verify_inspect(exported, tmp_path, capsys):
    path = tmp_path / "model.s4d"
    assert main(["onnx", str(exported.checkpoint), "-o", str(path), "--op", "standard"]) == 0
    figures = tmp_path / "figures.json"
    command = ["verify", str(exported.checkpoint), str(path), "--frames", "4"]
    assert main([*command, "--json", str(figures)]) == 0
    assert "PASSED" in capsys.readouterr().out
    (run,) = json.loads(figures.read_text())["runs"]
    assert run["frames"] == 4 and run["passed"]
    assert main(["inspect", str(path)]) == 0
    assert "next_id_counter" in capsys.readouterr().out
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["op"] == "standard"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["onnx", "nowhere", "-o", "x.s4d"], "config.json is missing"),
        (["onnx", "{checkpoint}", "-o", "no/such/folder/x.s4d"], "does not exist"),
        (["onnx", "{checkpoint}", "-o", "."], "the folder"),
        (["verify", "{checkpoint}", "nothing.s4d"], "cannot open the artifact"),
        (["verify", "{checkpoint}", "{artifact}", "--backend", "abacus"], "abacus"),
        (["verify", "{checkpoint}", "{artifact}", "--data", "nowhere"], "nowhere"),
        (["inspect", "nothing.onnx"], "cannot read"),
        (["inspect", "{checkpoint}/config.json"], "zip"),
    ],
)
def test_errors_are_one_line(exported, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    places = {"checkpoint": exported.checkpoint, "artifact": exported.artifacts["plugin"]}
    assert main([text.format(**places) for text in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_not_an_onnx_file(tmp_path, capsys):
    file = tmp_path / "x.onnx"
    file.write_bytes(b"this is no graph")
    assert main(["inspect", str(file)]) == 1
    assert "holds no ONNX graph" in capsys.readouterr().err


def test_unknown_model_in_checkpoint(exported, tmp_path, capsys):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    config = json.loads((exported.checkpoint / "config.json").read_text())
    config["model"]["backbone"]["block"] = "pyramid"
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["onnx", str(folder), "-o", str(tmp_path / "x.s4d")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "block" in error and error.count("\n") == 1


def test_a_full_disk_leaves_nothing(exported, tmp_path):
    """A file-size limit stands for the full disk: writing fails part way."""
    from s4d_export import UnwritableOutputError, build_manifest, save_artifact
    from s4d_export.inspection import load_graph

    graph, _ = load_graph(exported.artifacts["plugin"])
    manifest = build_manifest(exported.model.config, "x", "plugin", "fp32")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UnwritableOutputError, match="nothing was left behind"):
            save_artifact(tmp_path / "x.s4d", graph, manifest)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert list(tmp_path.iterdir()) == []


def test_help_is_quick_and_does_not_import_torch():
    code = (
        "import sys\nfrom s4d_export.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'onnx' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ, capture_output=True)
    with pytest.raises(SystemExit) as caught:
        main(["onnx"])
    assert caught.value.code == 2
