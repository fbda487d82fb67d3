"""The rerun recording, where rerun-sdk is installed (it needs NumPy 2: ``nox -s rerun``)."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from s4d_runtime.cli import main
from s4d_runtime.errors import MissingExtraError

HAS_RERUN = importlib.util.find_spec("rerun") is not None


@pytest.fixture
def results(artifact: Path, made_dataset: Path, tmp_path: Path) -> Path:
    out = tmp_path / "drive"
    assert main(["drive", str(made_dataset), "--artifact", str(artifact), "--out", str(out)]) == 0
    return out / "detection.json"


@pytest.mark.skipif(not HAS_RERUN, reason="needs rerun-sdk")
def test_recording_is_complete_and_sound(results: Path, made_dataset: Path, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "drive.rrd"
    command = ["view", str(results), "--data", str(made_dataset), "--rerun", str(target)]
    assert main([*command, "--annotations"]) == 0
    assert sorted(p.name for p in target.parent.iterdir()) == ["drive.rrd"]
    tool = [sys.executable, "-m", "rerun", "rrd"]
    subprocess.run([*tool, "verify", str(target)], check=True, capture_output=True)
    listing = subprocess.run([*tool, "print", str(target)], check=True, capture_output=True)
    text = listing.stdout.decode()
    for entity in ("vehicle", "CAM_FRONT", "objects", "objects/velocity", "annotations"):
        assert entity in text, entity
    frames = len(json.loads(results.read_text())["results"])
    assert frames > 1


@pytest.mark.skipif(HAS_RERUN, reason="rerun-sdk is installed")
def test_missing_package_is_named(
    results: Path, made_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "drive.rrd"
    command = ["view", str(results), "--data", str(made_dataset), "--rerun", str(target)]
    assert main(command) == 1
    assert "s4d-runtime[rerun]" in capsys.readouterr().err
    assert not target.exists()
    assert issubclass(MissingExtraError, ImportError)
