"""What a user gets wrong ends in one sentence and exit code 1, whatever the package."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

from s4d_core import convert_checkpoint
from s4d_export.cli import main as s4d_export
from s4d_ops import S4DError
from s4d_runtime.cli import main as s4d_run
from s4d_train.cli import main as s4d_train


def refused(status: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that failed with a named error."""
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 1
    assert message.startswith("error: ")
    assert "Traceback" not in message
    return message


def rewritten(artifact: Path, target: Path, **changes: object) -> Path:
    """A copy of the artifact with other manifest entries."""
    with zipfile.ZipFile(artifact) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            data = source.read(name)
            if name == "manifest.json":
                data = json.dumps({**json.loads(data), **changes}).encode()
            copy.writestr(name, data)
    return target


def test_truncated_artifact(artifact: Path, tmp_path: Path, world: Path, capsys) -> None:
    short = tmp_path / "short.s4d"
    short.write_bytes(artifact.read_bytes()[:-1000])
    refused(s4d_run(["drive", str(world), "--artifact", str(short)]), capsys)


def test_altered_weights(artifact: Path, tmp_path: Path, capsys) -> None:
    altered = tmp_path / "altered.s4d"
    with zipfile.ZipFile(artifact) as source, zipfile.ZipFile(altered, "w") as copy:
        for name in source.namelist():
            data = bytearray(source.read(name))
            if name == "model.onnx":
                data[len(data) // 2] ^= 1
            copy.writestr(name, bytes(data))
    message = refused(s4d_run(["bench", str(altered)]), capsys)
    assert "model.onnx" in message


def test_unknown_artifact_format(artifact: Path, tmp_path: Path, capsys) -> None:
    other = rewritten(artifact, tmp_path / "other.s4d", format=99)
    assert "99" in refused(s4d_run(["inspect", str(other)]), capsys)


def test_pth_that_is_no_checkpoint(tmp_path: Path) -> None:
    text = tmp_path / "notes.pth"
    text.write_text("not a checkpoint")
    with pytest.raises(S4DError):
        convert_checkpoint(text, tmp_path / "out", source="horizon", model="sparse4dv3_tiny")
    assert not (tmp_path / "out").exists()


def test_checkpoint_of_another_architecture(tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}}, other)
    with pytest.raises(S4DError):
        convert_checkpoint(other, tmp_path / "out", source="horizon", model="sparse4dv3_tiny")
    assert not (tmp_path / "out").exists()


def test_folder_that_is_no_checkpoint(tmp_path: Path, capsys) -> None:
    refused(s4d_export(["onnx", str(tmp_path), "-o", str(tmp_path / "a.s4d")]), capsys)
    assert not (tmp_path / "a.s4d").exists()


def test_config_typo_names_the_nearest(capsys) -> None:
    message = refused(s4d_train(["fit", "sparse4dv3_tinny"]), capsys)
    assert "sparse4dv3_tiny" in message
