"""On a CUDA device: the step waits only for the assignment, and half precision trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from micro import micro_config

from s4d_train.data.index import DriveIndex
from s4d_train.trainer.feed import Feed
from s4d_train.trainer.ranks import Ranks
from s4d_train.trainer.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def trainer_and_batches(folder: Path, index: DriveIndex, *pairs: str):
    ranks = Ranks(0, 1, torch.device("cuda", 0))
    config = micro_config(folder, Path(index.folder), *pairs)
    return Trainer(config, ranks), Feed(config, ranks).batches()


def test_a_step_has_no_hidden_synchronisation(synth_index: DriveIndex, tmp_path: Path) -> None:
    """torch raises at every operation that makes the host wait.

    The assignment waits for an event of its own copy, which is not one of them.
    """
    trainer, batches = trainer_and_batches(tmp_path, synth_index, "run.precision=bf16")
    for _ in range(3):
        trainer.train_step(next(batches), 1e-4)
    batch = next(batches)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.train_step(batch, 1e-4)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "pairs",
    [
        ("run.precision=bf16",),
        ("run.precision=fp16",),
        ("run.precision=bf16", "run.head_precision=same"),
        ("run.precision=fp32",),
        ("run.precision=bf16", "model.checkpointing=true"),
    ],
)
def test_precisions_agree(pairs, synth_index: DriveIndex, tmp_path: Path) -> None:
    """First losses of each precision beside those of float32 on the CPU."""
    fixed = ("model.dropout=0.0", "run.tf32=false")
    device, batches = trainer_and_batches(tmp_path, synth_index, *fixed, *pairs)
    config = micro_config(tmp_path, Path(synth_index.folder), *fixed, "run.precision=fp32")
    host = Trainer(config, Ranks(0, 1, torch.device("cpu")))
    batch = next(batches)
    wanted = host.train_step(batch, 1e-3)
    found = device.train_step(batch, 1e-3)
    assert found.keys() == wanted.keys()
    tolerance = 1e-3 if "run.precision=fp32" in pairs else 0.1
    for name in ("loss", "loss_cls_0", "loss_dense_depth", "loss_cls_dn_0"):
        assert found[name].item() == pytest.approx(wanted[name].item(), rel=tolerance), name


def test_resume_on_the_device(synth_index: DriveIndex, tmp_path: Path) -> None:
    """Deterministic kernels: a restored trainer gives the same losses, bit for bit."""
    pairs = ("run.deterministic=true", "run.precision=bf16", "optimiser.ema=0.9")
    trainer, batches = trainer_and_batches(tmp_path, synth_index, *pairs)
    try:
        for _ in range(2):
            trainer.train_step(next(batches), 1e-3)
        folder = trainer.save(tmp_path / "checkpoints", {})
        rest = [next(batches) for _ in range(2)]
        wanted = [trainer.train_step(batch, 1e-3) for batch in rest]
        again, _ = trainer_and_batches(tmp_path, synth_index, *pairs)
        again.load(folder)
        for batch, values in zip(rest, wanted, strict=True):
            for name, value in again.train_step(batch, 1e-3).items():
                assert torch.equal(value, values[name]), name
    finally:
        torch.use_deterministic_algorithms(False)
