"""Training of models that sample frames to come, and of those that keep past feature maps."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from micro import micro_config, micro_model

import s4d_core
from s4d_train.data.index import DriveIndex
from s4d_train.evaluation.predict import predict_checkpoint
from s4d_train.trainer.checkpoint import list_checkpoints
from s4d_train.trainer.lookahead import observed, windows
from s4d_train.trainer.loop import fit
from s4d_train.trainer.ranks import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))


def test_windows_hold_the_batches_to_come() -> None:
    assert list(windows("abcde", 2)) == [
        ("a", ("b", "c")),
        ("b", ("c", "d")),
        ("c", ("d", "e")),
        ("d", ("e",)),
        ("e", ()),
    ]
    assert list(windows("ab", 0)) == [("a", ()), ("b", ())]


def test_another_sequence_is_not_a_frame_to_come() -> None:
    def batch(*start: bool, last: bool = True) -> SimpleNamespace:
        made = SimpleNamespace(
            sequence_start=torch.tensor(start),
            lidar2img=None,
            timestamp=None,
            lidar2global=None,
            tokens=["a", "b" if last else ""],
        )
        made.to = lambda *_, **__: made
        return made

    model = SimpleNamespace(
        observe=lambda images, *rest: s4d_core.Observation(images, *rest)  # type: ignore[arg-type]
    )
    following = [batch(False, False), batch(True, False), batch(False, False, last=False)]
    seen = observed(model, following, lambda b: None, torch.device("cpu"))  # type: ignore[arg-type]
    assert [s.present.tolist() for s in seen] == [
        [True, True],
        [False, True],
        [False, False],
    ]


@pytest.mark.parametrize("frames", ["past", "future"])
def test_a_resumed_run_gives_the_same_losses(
    frames: str, synth_index: DriveIndex, tmp_path: Path
) -> None:
    """The queue is part of the state; frames to come are read again."""
    queue = s4d_core.QueueConfig(2, frames)  # type: ignore[arg-type]
    model = replace(micro_model(), queue=queue, depth=None)
    if frames == "past":
        model = replace(model, depth_reweight=s4d_core.DepthReweightConfig())
    config = micro_config(tmp_path, Path(synth_index.folder), "run.save_every=2", "run.steps=4")
    (tmp_path / "micro.json").write_text(json.dumps(model.to_dict()))
    fit(config, ALONE, show=False)
    run = tmp_path / "run"
    whole = losses(run)
    last = list_checkpoints(run / "checkpoints")[-1]
    assert last.name == "step_00000004"
    shutil.rmtree(last)
    (run / "log.jsonl").unlink()
    fit(config, ALONE, resume=True, show=False)
    again = losses(run)
    assert list(whole) == [1, 2, 3, 4] and list(again) == [3, 4]
    assert all(again[step] == whole[step] for step in again)
    assert ("loss_distance" in whole[1]) is (frames == "past")
    if frames == "future":
        check_predictions(s4d_core.load_checkpoint(run / "final"), synth_index)


def check_predictions(model: s4d_core.Sparse4D, index: DriveIndex) -> None:
    """Evaluation shows the model the frames to come: without them it finds other boxes."""
    found = predict_checkpoint(model, index, None, ALONE, batch=2, workers=0, show=False)
    assert len(found.samples) == len(index.samples(None))
    blind = s4d_core.build_model(model.config)
    blind.load_state_dict(model.state_dict())
    blind.observe = lambda *_: None  # type: ignore[assignment,method-assign]
    without = predict_checkpoint(blind, index, None, ALONE, batch=2, workers=0, show=False)
    assert without.samples.keys() == found.samples.keys()
    assert any(
        not np.array_equal(found.samples[t][0], without.samples[t][0]) for t in found.samples
    )


def losses(run: Path) -> dict[int, dict[str, float]]:
    """Step -> losses, from the log."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {
        row["step"]: {k: v for k, v in row.items() if k.startswith("loss")}
        for row in rows
        if "loss" in row
    }
