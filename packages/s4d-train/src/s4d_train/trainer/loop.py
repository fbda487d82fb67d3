"""The training run: from settings to a trained checkpoint, through kills and restarts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from s4d_core import Sparse4D

from ..configs.config import FitConfig
from ..configs.limits import check_limits
from ..configs.settings import to_dict
from ..errors import CheckpointError, ConfigError
from .checkpoint import list_checkpoints, step_of
from .feed import Feed
from .guard import NonFiniteGuard
from .log import RunLog
from .lookahead import windows
from .metrics import DelayedValues
from .ranks import Ranks, peak_memory_gb
from .schedule import rate_factor, scaled_rate
from .trainer import Trainer

CHECKPOINTS = "checkpoints"
CONFIG_FILE = "config.json"
FINAL = "final"


def fit(
    config: FitConfig,
    ranks: Ranks,
    resume: bool = False,
    show: bool = True,
    prepare_model: Callable[[Sparse4D], object] | None = None,
) -> Path:
    """Trains and returns the folder of the final checkpoint (`config.json`, `model.safetensors`).

    Args:
        config: the run's settings.
        ranks: from `ranks.started()`.
        resume: continue at the last checkpoint in the output folder, if there is one.
        show: draw a progress bar.
        prepare_model: see `Trainer`; fine-tuning with quantisation enters here.

    Raises:
        ConfigError, DataError: before training starts.
        NonFiniteError: losses do not become finite again.
        CheckpointError: there are checkpoints and `resume` is False, or one cannot be read.
    """
    check_limits(config)
    out = Path(config.out or Path("out") / config.name)
    found = list_checkpoints(out / CHECKPOINTS)
    if found and not resume:
        raise CheckpointError(
            f"{out} already holds a run up to step {step_of(found[-1])}; continue it with "
            "--resume or give another folder with --out."
        )
    feed = Feed(config, ranks)
    trainer = Trainer(config, ranks, prepare_model)
    epoch = feed.steps_per_epoch
    total = config.run.steps or config.run.epochs * epoch
    notes = start_notes(config, feed.total_batch, trainer.device.type)
    if found:
        shared = trainer.load(found[-1])
        feed.sampler.load_state_dict(shared["sampler"])
        notes += changed_settings(json.loads(shared["config"]), to_dict(config))
    if ranks.first:
        out.mkdir(parents=True, exist_ok=True)
        _write(out / CONFIG_FILE, json.dumps(to_dict(config), indent=2) + "\n")
    ranks.barrier()
    _check_shared(out / CONFIG_FILE, ranks)
    if ranks.first:
        with RunLog(out, total, trainer.step, show) as log:
            for note in notes:
                log.warn(note)
            _run(trainer, feed, total, epoch, out, log)
    else:
        _run(trainer, feed, total, epoch, out, None)
    if ranks.first:
        trainer.export(out / FINAL)
    ranks.barrier()
    return out / FINAL


def _run(
    trainer: Trainer, feed: Feed, total: int, epoch: int, out: Path, log: RunLog | None
) -> None:
    config, run = trainer.config, trainer.config.run
    peak = scaled_rate(config.optimiser, feed.total_batch)
    guard = NonFiniteGuard(run.non_finite, run.max_skips)
    delayed = DelayedValues()
    every = run.save_every or epoch
    waited, since, since_step = 0.0, time.perf_counter(), trainer.step
    speed = share = 0.0

    def report(arrived: tuple[int, dict[str, float]] | None) -> None:
        nonlocal waited, since, since_step, speed, share
        if arrived is None:
            return
        step, values = arrived
        warning = guard.check(step, values)
        if warning:
            trainer.statistics.restore(step)
        if log is None:
            return
        if warning:
            log.warn(warning)
        log.advance()
        if step % run.log_every and step != total:
            return
        if trainer.step > since_step:  # values come late, and two at once before a checkpoint
            now = time.perf_counter()
            speed = (trainer.step - since_step) / max(now - since, 1e-9)
            share = waited / max(now - since, 1e-9)
            waited, since, since_step = 0.0, now, trainer.step
        memory = peak_memory_gb(trainer.device)
        log.write(
            step,
            {
                **values,
                "lr": peak * rate_factor(step - 1, total, config.optimiser),
                "steps_per_s": speed,
                "data_wait": share,
                "memory_gb": memory,
                "skipped": float(guard.total),
            },
        )
        log.show(
            {
                "loss": f"{values['loss']:.3f}",
                "wait": f"{share:.0%}",
                **({"GB": f"{memory:.1f}"} if memory else {}),
            }
        )

    batches = windows(feed.batches() if trainer.step < total else iter(()), trainer.lookahead)
    while trainer.step < total:
        begin = time.perf_counter()
        batch, following = next(batches)
        waited += time.perf_counter() - begin
        rate = peak * rate_factor(trainer.step, total, config.optimiser)
        values = trainer.train_step(batch, rate, following)
        report(delayed.push(trainer.step, values))
        if trainer.step % every == 0 or trainer.step == total:
            report(delayed.flush())
            trainer.save(out / CHECKPOINTS, feed.sampler.state_dict(trainer.step))
    report(delayed.flush())


def start_notes(config: FitConfig, total_batch: int, device: str) -> list[str]:
    """What a user should know before the run: where it differs from what the recipe says."""
    notes = []
    if device == "cpu" and config.run.precision != "fp32":
        notes.append(
            f"the CPU computes in fp32; run.precision={config.run.precision} is for others"
        )
    settings = config.optimiser
    if total_batch == settings.reference_batch or not settings.scale_lr:  # False: chosen
        return notes
    rate = scaled_rate(settings, total_batch)
    kept = f"learning rate {rate:.3g} as for it"
    if rate != settings.lr:
        kept = f"learning rate {rate:.3g} instead of {settings.lr:.3g} (half the batch, two thirds)"
    notes.append(
        f"{total_batch} samples per step, the recipe has {settings.reference_batch}: {kept}; set "
        "optimiser.lr and optimiser.scale_lr=false to choose it yourself"
    )
    return notes


def changed_settings(before: dict[str, Any], now: dict[str, Any], where: str = "") -> list[str]:
    """Notes on settings that differ from those of the run that is resumed."""
    notes = []
    for key, value in now.items():
        name = f"{where}{key}"
        old = before.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            notes += changed_settings(old, value, f"{name}.")
        elif old != value and name not in ("out", "run.workers", "run.log_every"):
            notes.append(f"setting '{name}' was {old!r} before the resume, now it is {value!r}")
    return notes


def _check_shared(file: Path, ranks: Ranks, patience: float = 60.0) -> None:
    """ConfigError where this rank does not see a file of the first: checkpoints need all ranks.

    A network file system may show it late.
    """
    end = time.monotonic() + patience
    while not file.is_file():
        if time.monotonic() > end:
            raise ConfigError(
                f"rank {ranks.rank} does not see {file}, which the first rank wrote; --out must "
                "be a folder that all machines of the job share."
            )
        time.sleep(0.5)


def _write(file: Path, text: str) -> None:
    part = file.with_suffix(".part")
    part.write_text(text)
    part.replace(file)
