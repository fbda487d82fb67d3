"""The training run: kill and resume, bad steps, moving average, early errors, the schedule."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from micro import micro_config

from s4d_core import Sparse4D, load_checkpoint
from s4d_train.cli import main
from s4d_train.configs.config import OptimiserSettings
from s4d_train.configs.settings import override, to_dict
from s4d_train.data.index import DriveIndex
from s4d_train.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from s4d_train.trainer.checkpoint import list_checkpoints
from s4d_train.trainer.checkpoint import load_checkpoint as load_checkpoint_parts
from s4d_train.trainer.feed import Feed
from s4d_train.trainer.guard import GradientScale, NonFiniteGuard, clip_gradients
from s4d_train.trainer.loop import _check_shared, changed_settings, fit, start_notes
from s4d_train.trainer.optimiser import build_optimiser, guarded_step
from s4d_train.trainer.precision import Precision
from s4d_train.trainer.ranks import Ranks
from s4d_train.trainer.schedule import rate_factor, scaled_rate
from s4d_train.trainer.step import TemporalState, finite_state
from s4d_train.trainer.trainer import Trainer

ALONE = Ranks(0, 1, torch.device("cpu"))
KILLED_AFTER_FIVE = """
import os, signal, sys
from s4d_train.cli import main
from s4d_train.trainer.log import RunLog

write = RunLog.write

def last_words(self, step, values):
    write(self, step, values)
    if step == 5:
        os.kill(os.getpid(), signal.SIGKILL)

RunLog.write = last_words
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The same sums in every process; and on busy machines, tiny models are faster so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def index(synth_index: DriveIndex) -> Path:
    return Path(synth_index.folder)


def lines(folder: Path) -> list[dict[str, float]]:
    text = (folder / "log.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def figures(folder: Path) -> list[dict[str, float]]:
    """Losses and gradient norms, without what depends on the clock."""
    return [
        {k: v for k, v in line.items() if k.startswith(("loss", "grad")) or k in ("step", "lr")}
        for line in lines(folder)
    ]


@pytest.fixture(scope="module")
def whole_run(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight steps without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    fit(micro_config(folder, index, "optimiser.ema=0.9"), ALONE, show=False)
    return folder / "run"


def test_a_run_writes_what_others_read(whole_run: Path) -> None:
    found = lines(whole_run)
    assert [line["step"] for line in found] == list(range(1, 9))
    assert all(np.isfinite(value) for line in found for value in line.values())
    assert {"loss_cls_0", "loss_box_dn_1", "loss_dense_depth", "lr"} <= found[0].keys()
    assert load_checkpoint(whole_run / "final").config.num_anchors == 24
    assert [p.name for p in list_checkpoints(whole_run / "checkpoints")] == [
        "step_00000004",
        "step_00000008",
    ]
    assert list((whole_run / "tensorboard").iterdir())
    assert json.loads((whole_run / "config.json").read_text())["run"]["steps"] == 8


def test_killed_and_resumed_run_gives_the_same_losses(
    whole_run: Path, index: Path, tmp_path: Path
) -> None:
    """The process is killed after step 5; the next one goes on from step 4."""
    config = micro_config(tmp_path, index, "optimiser.ema=0.9")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_dict(config)))
    command = [sys.executable, "-c", KILLED_AFTER_FIVE, "fit", str(file), "--device", "cpu"]
    command += ["--no-progress", "--resume"]
    run = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == -signal.SIGKILL
    left = [p.name for p in list_checkpoints(tmp_path / "run" / "checkpoints")]
    assert left == ["step_00000004"]
    fit(config, ALONE, resume=True, show=False)
    assert figures(tmp_path / "run") == figures(whole_run)
    one, other = (load_checkpoint(f / "final").state_dict() for f in (tmp_path / "run", whole_run))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_finished_run_is_not_overwritten(whole_run: Path, index: Path) -> None:
    config = micro_config(whole_run.parent, index)
    with pytest.raises(CheckpointError, match="--resume or give another folder"):
        fit(config, ALONE, show=False)


def test_broken_checkpoints_are_named(index: Path, tmp_path: Path) -> None:
    config = micro_config(tmp_path, index, "run.steps=1", "run.save_every=1")
    fit(config, ALONE, show=False)
    folder = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    longer = override(config, ["run.steps=2"])
    whole = (folder / "training.pt").read_bytes()
    (folder / "training.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"step_00000001/training.pt cannot be read"):
        fit(longer, ALONE, resume=True, show=False)
    (folder / "training.pt").write_bytes(whole)
    with pytest.raises(CheckpointError, match="1 ranks, this job has 2"):
        load_checkpoint_parts(folder, Ranks(0, 2, torch.device("cpu")))
    with pytest.raises(ConfigError, match="seed"):
        fit(override(longer, ["run.seed=5"]), ALONE, resume=True, show=False)


def test_early_errors(index: Path, tmp_path: Path) -> None:
    def error(*pairs: str) -> str:
        with pytest.raises((ConfigError, DataError)) as found:
            fit(micro_config(tmp_path, index, *pairs), ALONE, show=False)
        return str(found.value)

    anchors = tmp_path / "anchors.npy"
    np.save(anchors, np.zeros((10, 11)))
    assert "(24, 11) anchors, anchors.npy has (10, 11)" in error(f"model.anchors={anchors}")
    assert "cannot read" in error("model.anchors=nothing.npy")
    assert "sparse4dv3_r50" in error("model.name=sparse4dv3_r5")
    assert "'run.batch' must be at least 1; got 0" in error("run.batch=0")
    assert "'optimiser.lr' must be more than 0; got -1.0" in error("optimiser.lr=-1")
    assert "must be from 0 to 1; got 1.5" in error("data.skip_probability=1.5")
    assert "is empty" in error("data.index=''")
    assert "no index.json" in error(f"data.index={tmp_path}")
    assert "mini_trian" in error("split=mini_trian")
    assert "cameras CAM_TOP" in error("data.camera_names=('CAM_TOP',)")
    assert "2 levels, the depth branch" in error("data.depth_strides=(4, 8)")
    assert "the pyramid's levels have" in error("data.depth_strides=(8, 8, 16)")
    assert "expected timm/NAME, got 'resnet18'" in error("model.backbone=resnet18")
    assert "files that training reads" in error(f"data.root={tmp_path}")
    assert "torch can read" in error(f"model.backbone_weights={anchors}")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_broken_picture_is_one_line(
    index: Path, synth_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also from a worker process, whose errors torch wraps in a traceback."""
    shutil.copytree(synth_root / "samples", tmp_path / "data" / "samples")
    for picture in (tmp_path / "data").rglob("*.jpg"):
        picture.write_bytes(picture.read_bytes()[:300])
    pairs = (f"data.root={tmp_path / 'data'}", "run.workers=1")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_dict(micro_config(tmp_path, index, *pairs))))
    assert main(["fit", str(file), "--device", "cpu", "--no-progress"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: cannot decode") and ".jpg" in error
    assert "Traceback" not in error


def test_schedule() -> None:
    settings = OptimiserSettings()
    total = 58600
    assert rate_factor(0, total, settings) == pytest.approx(1 / 3)
    assert rate_factor(250, total, settings) == pytest.approx(2 / 3, rel=1e-3)
    assert rate_factor(500, total, settings) == pytest.approx(1.0, rel=1e-3)
    middle = 0.5 * (1 + 1e-3)
    assert rate_factor(total // 2, total, settings) == pytest.approx(middle, rel=1e-6)
    assert rate_factor(total, total, settings) == pytest.approx(1e-3)


def test_learning_rate_rule(index: Path, tmp_path: Path) -> None:
    settings = OptimiserSettings()
    assert scaled_rate(settings, 48) == scaled_rate(settings, 88) == 6e-4
    assert scaled_rate(settings, 24) == pytest.approx(4e-4)
    assert scaled_rate(settings, 12) == pytest.approx(6e-4 * 4 / 9)
    config = micro_config(tmp_path, index)
    assert start_notes(config, 2, "cpu") == []
    assert "1 samples per step, the recipe has 2" in start_notes(config, 1, "cpu")[0]
    assert "learning rate 0.001 as for it" in start_notes(config, 3, "cpu")[0]
    assert start_notes(override(config, ["optimiser.scale_lr=false"]), 1, "cpu") == []


def test_the_cpu_computes_in_float32_and_says_so(index: Path, tmp_path: Path) -> None:
    config = micro_config(tmp_path, index, "run.precision=bf16", "run.head_precision=same")
    assert start_notes(config, 2, "cuda") == []
    assert start_notes(config, 2, "cpu")[0].startswith("the CPU computes in fp32")
    assert Trainer(config, ALONE).module.precision == Precision("cpu")


def test_changed_settings_are_listed() -> None:
    before = {"run": {"batch": 2, "workers": 1}, "out": "a"}
    after = {"run": {"batch": 4, "workers": 2}, "out": "b"}
    assert changed_settings(before, after) == [
        "setting 'run.batch' was 2 before the resume, now it is 4"
    ]


def test_backbone_has_its_own_rate(index: Path, tmp_path: Path) -> None:
    trainer = Trainer(micro_config(tmp_path, index, "optimiser.backbone_multiplier=0.5"), ALONE)
    groups = {group["name"]: group for group in trainer.optimiser.param_groups}
    backbone = sum(p.numel() for p in trainer.model.backbone.parameters())
    assert sum(p.numel() for p in groups["backbone"]["params"]) == backbone
    everything = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert sum(p.numel() for g in groups.values() for p in g["params"]) == everything
    assert groups["backbone"]["multiplier"] == 0.5


def test_a_model_can_be_changed_before_training(index: Path, tmp_path: Path) -> None:
    """Fine-tuning with quantisation puts its rounding into the convolutions here."""
    given = []

    def halve_inputs(model: Sparse4D) -> None:
        given.append(model)
        model.backbone.conv1.register_forward_pre_hook(lambda module, args: (args[0] / 2,))

    config = micro_config(tmp_path, index)
    plain = Trainer(config, ALONE)
    changed = Trainer(config, ALONE, halve_inputs)
    assert given == [changed.model]
    assert list(changed.model.state_dict()) == list(plain.model.state_dict())
    batch = next(Feed(config, ALONE).batches())
    losses = [float(trainer.train_step(batch, 1e-3)["loss"]) for trainer in (plain, changed)]
    assert losses[0] != losses[1]


def test_tf32_is_for_products_and_convolutions(index: Path, tmp_path: Path) -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        for allowed, precision in ((False, "highest"), (True, "high")):
            Trainer(micro_config(tmp_path, index, f"run.tf32={allowed}"), ALONE)
            assert torch.get_float32_matmul_precision() == precision
            assert torch.backends.cudnn.allow_tf32 == allowed
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_frozen_batch_norm_keeps_still(index: Path, tmp_path: Path) -> None:
    config = micro_config(tmp_path, index, "model.batch_norm=frozen", "run.steps=1")
    trainer, batches = Trainer(config, ALONE), Feed(config, ALONE).batches()
    before = {k: v.clone() for k, v in trainer.model.state_dict().items() if "bn1" in k}
    trainer.train_step(next(batches), 1e-3)
    after = trainer.model.state_dict()
    assert before and all(torch.equal(after[name], value) for name, value in before.items())


def test_a_bad_step_is_skipped_and_forgotten(index: Path, tmp_path: Path) -> None:
    """NaN images: weights, statistics and the temporal state do not keep any of it."""
    config = micro_config(tmp_path, index)
    trainer, batches = Trainer(config, ALONE), Feed(config, ALONE).batches()
    trainer.train_step(next(batches), 1e-3)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items() if "batches" not in k}
    batch = next(batches)
    batch.photometric[:, :, 0] = float("nan")
    values = trainer.train_step(batch, 1e-3)
    assert not values["grad_norm"].isfinite()
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    bank = trainer.temporal.model.bank
    assert bank.feature.isfinite().all() and not bank.valid.any()
    values = trainer.train_step(next(batches), 0.0)
    assert values["grad_norm"].isfinite() and values["loss"].isfinite()
    trainer.statistics.restore(2)
    after = trainer.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if "running" in name)


def test_guard_names_the_loss_and_stops() -> None:
    bad = {"loss_cls_0": float("nan"), "loss_box_0": 1.0, "grad_norm": float("nan")}
    guard = NonFiniteGuard("skip", 3)
    assert "not finite: loss_cls_0;" in str(guard.check(7, bad))
    assert guard.check(8, {"loss_cls_0": 1.0}) is None
    guard.check(9, bad)
    guard.check(10, bad)
    with pytest.raises(NonFiniteError, match="3 steps in a row up to step 11"):
        guard.check(11, bad)
    with pytest.raises(NonFiniteError, match=r"run\.non_finite is 'stop'"):
        NonFiniteGuard("stop", 3).check(1, bad)
    only_gradients = NonFiniteGuard("skip", 3).check(1, {"loss": 1.0, "grad_norm": float("inf")})
    assert "all losses are finite" in str(only_gradients)


def test_gradient_scale_and_clipping() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4))
    scale = GradientScale(torch.device("cpu"), 8.0, enabled=True, interval=2)
    parameter.grad = torch.full((4,), 8.0 * 3)
    norm, bad = clip_gradients([parameter], 1.0, scale.value)
    assert norm.item() == pytest.approx(6.0) and bad.item() == 0.0
    assert parameter.grad.norm().item() == pytest.approx(1.0, rel=1e-5)
    for expected in (8.0, 16.0):
        scale.update(torch.zeros(()))
        assert scale.value.item() == expected
    scale.update(torch.ones(()))
    assert scale.value.item() == 8.0
    again = GradientScale(torch.device("cpu"), 1.0, enabled=True)
    again.load_state_dict(scale.state_dict())
    assert again.value.item() == 8.0


def test_skipped_steps_leave_the_moments() -> None:
    model = torch.nn.Linear(2, 1)
    optimiser = build_optimiser(model, OptimiserSettings(), torch.device("cpu"))
    model.weight.grad = torch.full((1, 2), float("nan"))
    model.bias.grad = torch.ones(1)
    before = model.weight.clone()
    guarded_step(optimiser, torch.ones(()))
    assert torch.equal(model.weight, before)
    model.weight.grad = torch.ones(1, 2)
    guarded_step(optimiser, torch.zeros(()))
    assert not torch.equal(model.weight, before) and model.weight.isfinite().all()


def test_empty_state_stays_empty() -> None:
    assert finite_state(TemporalState()).model is None
    assert TemporalState().reset(torch.ones(2, dtype=torch.bool)).model is None


def test_a_folder_that_is_not_shared_is_named(tmp_path: Path) -> None:
    ranks = Ranks(3, 4, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"rank 3 does not see .*config\.json.* share"):
        _check_shared(tmp_path / "config.json", ranks, patience=0.0)


def test_moving_average_is_what_a_run_ends_in(index: Path, tmp_path: Path) -> None:
    """By its formula, a = 0.9 a + 0.1 w after each step; the trained weights stay as they are."""
    trainer = Trainer(micro_config(tmp_path, index, "optimiser.ema=0.9"), ALONE)
    batches = Feed(trainer.config, ALONE).batches()
    name, weight = next(iter(trainer.model.named_parameters()))
    expected = weight.detach().double()
    for _ in range(3):
        trainer.train_step(next(batches), 1e-2)
        expected = 0.9 * expected + 0.1 * weight.detach().double()
    trained = weight.detach().clone()
    saved = load_checkpoint(trainer.export(tmp_path / "final")).state_dict()[name]
    assert not torch.equal(saved, trained) and torch.equal(weight, trained)
    torch.testing.assert_close(saved.double(), expected, rtol=1e-5, atol=1e-7)
