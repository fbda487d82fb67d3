"""`s4d-train eval` from a checkpoint to metrics, and the command line around it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from micro import micro_model

import s4d_core
from s4d_train.cli import main
from s4d_train.commands.eval import _name
from s4d_train.data.index import DriveIndex
from s4d_train.errors import EvaluationError
from s4d_train.evaluation.found import Found
from s4d_train.evaluation.predict import predict_artifact, predict_checkpoint
from s4d_train.evaluation.run import EvalOptions, evaluate
from s4d_train.evaluation.submit import write_submission
from s4d_train.trainer.ranks import Ranks

s4d_runtime = pytest.importorskip(
    "s4d_runtime", reason="evaluation writes its files with s4d-runtime"
)
ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = s4d_core.build_model(micro_model())
    return s4d_core.save_checkpoint(model, tmp_path_factory.mktemp("model") / "micro")


def test_checkpoint_to_metrics_and_again_from_the_files(
    checkpoint: Path, synth_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--data", str(synth_root), "--device", "cpu", "--workers", "0"]
    assert main(["eval", str(checkpoint), *options, "--split", "all", "--out", str(out)]) == 0
    assert "NDS" in capsys.readouterr().out
    merged = json.loads((out / "metrics.json").read_text())
    assert {"mAP", "NDS", "AMOTA", "AMOTP"} <= merged["summary"].keys()
    results = json.loads((out / "detection.json").read_text())["results"]
    assert len(results) == 12 and not list(out.glob("found_*"))
    again = tmp_path / "again"
    assert main(["eval", str(out), *options, "--split", "all", "--out", str(again)]) == 0
    second = json.loads((again / "metrics.json").read_text())
    assert second["summary"] == merged["summary"]


def test_annotations_as_detections_score_high(
    synth_index: DriveIndex, synth_root: Path, tmp_path: Path
) -> None:
    """The whole way from LiDAR-frame boxes to the devkit: poses, sizes, yaw, velocity."""
    found = Found()
    for row in synth_index.samples(None):
        rows = synth_index.annotations(row)
        box, velocity = synth_index.box[rows], synth_index.velocity[rows]
        # Objects without a point are not scored; finding them would count as wrong.
        keep = (synth_index.label[rows] >= 0) & (synth_index.num_lidar_pts[rows] > 0)
        boxes = torch.zeros(int(keep.sum()), 10, dtype=torch.float64)
        boxes[:, :7] = torch.from_numpy(box[keep])
        boxes[:, 7:9] = torch.from_numpy(velocity[keep]).nan_to_num()
        count = len(boxes)
        # Distinct scores, the same for a track in every frame.
        ids = torch.from_numpy(synth_index.instance[rows][keep].copy()).long()
        detections = s4d_core.Detections(
            boxes=boxes,
            scores=0.5 + (ids % 97) / 200,
            labels=torch.from_numpy(synth_index.label[rows][keep].copy()).long(),
            track_ids=ids,
            class_scores=torch.ones(count),
        )
        found.add(synth_index.token[row].decode(), detections)
    file = tmp_path / "found_0.npz"
    found.save(file)
    names = synth_index.classes
    write_submission(Found.load([file]), synth_index, None, names, tmp_path / "results")
    options = EvalOptions(synth_root, tmp_path / "out", split="all", show=False)
    summary = evaluate(tmp_path / "results", options, ALONE)["summary"]
    assert summary.get("mAP_present", summary["mAP"]) > 0.99
    assert summary["mATE"] < 1e-6 and summary["mAVE"] < 1e-3
    assert summary["IDS"] == 0 and summary["AMOTA"] > 0.8


def test_frames_side_by_side_give_the_same_detections(
    checkpoint: Path, synth_index: DriveIndex
) -> None:
    """Two scenes in one batch do not see each other."""
    one, two = (
        predict_checkpoint(
            s4d_core.load_checkpoint(checkpoint),
            synth_index,
            None,
            ALONE,
            batch=batch,
            workers=0,
            show=False,
        )
        for batch in (1, 2)
    )
    assert one.samples.keys() == two.samples.keys()
    for token, (boxes, scores, labels, _) in one.samples.items():
        torch.testing.assert_close(
            torch.from_numpy(scores), torch.from_numpy(two.samples[token][1]), rtol=1e-4, atol=1e-5
        )
        assert len(boxes) == len(two.samples[token][0]) == len(labels)


def test_ranks_share_the_scenes(checkpoint: Path, synth_index: DriveIndex) -> None:
    model = s4d_core.load_checkpoint(checkpoint)
    parts = [
        predict_checkpoint(
            model, synth_index, None, Ranks(rank, 2, torch.device("cpu")), workers=0, show=False
        ).samples.keys()
        for rank in range(2)
    ]
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 12


def test_ranks_share_the_scenes_of_an_artifact(
    synth_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank its own device and scenes. The engine is a stand-in that finds nothing."""
    loaded, seen = [], []

    class Engine:
        manifest = SimpleNamespace(
            model={},
            class_names=["car"],
            preprocessing=SimpleNamespace(camera_names=["CAM_FRONT"]),
        )

        def reset(self) -> None:
            seen.append(0)

        def __call__(self, frame: object) -> None:
            seen[-1] += 1

    def load(artifact: Path, backend: str, device: int) -> Engine:
        loaded.append((backend, device))
        return Engine()

    monkeypatch.setattr(s4d_runtime.Pipeline, "load", load)
    scenes = ["scene-0061", "scene-0103"]
    parts = [
        predict_artifact(
            Path("x.s4d"),
            synth_root,
            "v1.0-mini",
            scenes,
            Ranks(rank, 2, torch.device("cuda", rank)),
            show=False,
        )[0].samples.keys()
        for rank in range(2)
    ]
    assert loaded == [("auto", 0), ("auto", 1)] and seen == [6, 6]
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 12


@pytest.mark.timeout(300)
def test_eval_under_torchrun(checkpoint: Path, synth_root: Path, tmp_path: Path) -> None:
    """Two ranks write the results of one."""
    options = ["--data", str(synth_root), "--split", "all", "--workers", "0", "--device", "cpu"]
    options += ["--no-metrics", "--no-progress"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "s4d_train", "eval", str(checkpoint), *options]
    two, one = tmp_path / "two", tmp_path / "one"
    subprocess.run(
        [*command, "--out", str(two)], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert main(["eval", str(checkpoint), *options, "--out", str(one)]) == 0
    for name in ("detection.json", "tracking.json"):
        mine, theirs = (json.loads((out / name).read_text())["results"] for out in (one, two))
        assert mine.keys() == theirs.keys() and len(mine) == 12
        assert {k: len(v) for k, v in mine.items()} == {k: len(v) for k, v in theirs.items()}


def test_broken_values_are_left_out(tmp_path: Path) -> None:
    boxes = torch.ones(3, 10)
    boxes[1, 0] = float("nan")
    scores = torch.tensor([0.5, 0.5, float("inf")])
    whole = torch.zeros(3, dtype=torch.long)
    found = Found()
    found.add("a", s4d_core.Detections(boxes, scores, whole, whole, scores))
    found.add("b", None)
    found.save(tmp_path / "found_0.npz")
    again = Found.load([tmp_path / "found_0.npz"])
    assert [len(v[1]) for v in again.samples.values()] == [1, 0]


def test_unknown_scenes_and_sources(
    checkpoint: Path, synth_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = EvalOptions(synth_root, tmp_path / "out", scenes=("scene-9999",), show=False)
    with pytest.raises(EvaluationError, match="scene-9999 is not in the data set"):
        evaluate(checkpoint, options, ALONE)
    assert main(["eval", str(tmp_path / "no.s4d"), "--data", str(synth_root)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: there is no") and error.count("\n") == 1
    nowhere = replace(options, data=tmp_path / "nowhere")
    with pytest.raises(EvaluationError, match=r"there is no folder .*nowhere"):
        evaluate(checkpoint, nowhere, ALONE)
    assert _name(tmp_path / "run7" / "final") == "run7" and _name(Path("a/int8.s4d")) == "int8"


def test_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "s4d_train", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "fit" in done.stdout and "eval" in done.stdout
    assert " torch\n" not in done.stderr and "nuscenes" not in done.stderr
    wrong = subprocess.run([sys.executable, "-m", "s4d_train", "fitt"], capture_output=True)
    assert wrong.returncode == 2


def test_training_does_not_need_the_devkit() -> None:
    code = (
        "import sys, s4d_train.trainer.loop; "
        "assert not [m for m in sys.modules if m.split('.')[0] in ('nuscenes', 'msgspec')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_fit_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "sparse4dv3_tinny"]) == 1
    assert "did you mean 'sparse4dv3_tiny'" in capsys.readouterr().err
    assert main(["fit"]) == 1
    assert main(["fit", "missing.json"]) == 1
    assert main(["fit", "--list"]) == 0
    assert main(["fit", "sparse4dv3_tiny", "--set", "run.steps=5", "--show"]) == 0
    assert '"steps": 5' in capsys.readouterr().out
