"""The training run: from settings to a trained checkpoint, through kills and restarts."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from s4d_core import load_checkpoint as load_model
from s4d_core import save_checkpoint as save_model

from ..configs.config import FitConfig
from ..configs.settings import to_dict
from ..data.batch import Batch
from ..data.preparation import ImagePreparation
from ..errors import CheckpointError
from ..objectives.draws import GeneratorDraws
from .average import WeightAverage
from .checkpoint import (
    MODEL,
    list_checkpoints,
    load_checkpoint,
    random_states,
    restore_random_states,
    save_checkpoint,
    step_of,
)
from .feed import Feed
from .gradients import average_gradients, same_start
from .graphs import GraphedModule
from .guard import GradientScale, NonFiniteGuard, StatisticsBackup, clip_gradients
from .log import RunLog
from .metrics import DelayedValues
from .network import build_network
from .optimiser import build_optimiser, guarded_step, set_rate
from .precision import Precision
from .ranks import Ranks, peak_memory_gb
from .schedule import rate_factor, scaled_rate
from .states import pack_state, unpack_state
from .step import TemporalState, TrainingModule, finite_state, forward_losses, make_targets

CHECKPOINTS = "checkpoints"
CONFIG_FILE = "config.json"
FINAL = "final"


class Trainer:
    """Everything that a step needs, and what a checkpoint holds.

    Args:
        config: the run's settings.
        ranks: this process in the job.
    """

    def __init__(self, config: FitConfig, ranks: Ranks) -> None:
        run = config.run
        self.config, self.ranks, self.device = config, ranks, ranks.device
        self.step = 0
        _torch_settings(config)
        torch.manual_seed(run.seed)
        self.model = build_network(config).to(self.device)
        if self.device.type == "cuda":
            self.model.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.model.compile:
            self.model.backbone.compile()
            self.model.neck.compile()
        precision = Precision(self.device.type, run.precision, run.head_precision)
        self.module: nn.Module = TrainingModule(self.model, precision)
        self.loss = config.loss
        self.recorded = run.cuda_graphs and self.device.type == "cuda"
        if self.recorded:
            self.module = GraphedModule(self.module)
            # Recorded work has fixed shapes: as many noisy anchors in every step.
            noise = replace(config.loss.denoising, fixed_size=True)
            self.loss = replace(config.loss, denoising=noise)
            if ranks.world > 1:
                same_start(self.model)
        elif ranks.world > 1:
            self.module = DistributedDataParallel(
                self.module, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        image = self.model.config.image
        self.prepare = ImagePreparation(image.mean, image.std).to(self.device)
        self.optimiser = build_optimiser(self.model, config.optimiser, self.device)
        self.scale = GradientScale(self.device, run.loss_scale, precision.scaled)
        self.average = None
        if config.optimiser.ema > 0:
            self.average = WeightAverage(self.model, config.optimiser.ema)
        self.statistics = StatisticsBackup(self.model)
        self.temporal = TemporalState()
        # From here on the ranks draw different numbers: dropout, denoising noise.
        torch.manual_seed(run.seed + 1000 * (ranks.rank + 1))
        self.draws = GeneratorDraws(run.seed + 1000 * (ranks.rank + 1) + 1)

    def train_step(self, batch: Batch, rate: float) -> dict[str, Tensor]:
        """One step on a batch from the loader; returns losses and gradient norm, on the device."""
        self.statistics.keep(self.step + 1)
        targets = make_targets(batch, self.loss, self.draws, self.device)
        batch = batch.to(self.device, non_blocking=True)
        past = self.temporal
        if self.config.run.reset_sequences:
            past = past.reset(batch.sequence_start)
        images = self.prepare(batch)
        losses, self.temporal = forward_losses(
            self.module, images, batch, targets, past, self.loss, self.draws
        )
        self.temporal = finite_state(self.temporal)
        total = torch.stack(list(losses.values())).sum()
        self.optimiser.zero_grad(set_to_none=True)
        (total * self.scale.value).backward()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        if self.recorded and self.ranks.world > 1:
            average_gradients(trained)
        norm, bad = clip_gradients(trained, self.config.optimiser.clip, self.scale.value)
        set_rate(self.optimiser, rate)
        guarded_step(self.optimiser, bad)
        self.scale.update(bad)
        if self.average is not None:
            self.average.update()
        self.step += 1
        # Detached: a loss that is kept would keep the whole pass alive.
        values = {**losses, "loss": total, "grad_norm": norm}
        return {name: value.detach() for name, value in values.items()}

    def save(self, folder: Path, sampler: dict[str, Any]) -> Path:
        """Writes a checkpoint after the present step; `sampler` is the sampler's state then."""

        def write_model(path: Path) -> None:
            save_model(self.model, path)

        shared: dict[str, Any] = {
            "optimiser": self.optimiser.state_dict(),
            "scale": self.scale.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "config": json.dumps(to_dict(self.config)),
            "sampler": sampler,
        }
        own = {
            "random": random_states(self.device),
            "draws": self.draws.state_dict(),
            "temporal": pack_state(self.temporal),
            "buffers": {k: v.cpu() for k, v in self.model.named_buffers()},
        }
        return save_checkpoint(
            folder,
            self.step,
            self.ranks,
            write_model,
            shared,
            own,
            self.config.run.keep,
        )

    def load(self, path: Path) -> dict[str, Any]:
        """Continues at a checkpoint; returns its shared part."""
        shared, own = load_checkpoint(path, self.ranks)
        weights = load_model(path / MODEL).state_dict()
        self.model.load_state_dict(weights)
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(own["buffers"][name])
        self.optimiser.load_state_dict(shared["optimiser"])
        self.scale.load_state_dict(shared["scale"])
        if self.average is not None:
            if shared["average"] is None:
                raise CheckpointError(
                    f"{path.name} has no moving average; resume with optimiser.ema=0."
                )
            self.average.load_state_dict(shared["average"])
        self.draws.load_state_dict(own["draws"])
        self.temporal = unpack_state(own["temporal"], self.device)
        self.step = int(shared["step"])
        restore_random_states(own["random"], self.device)
        return shared

    def export(self, folder: Path) -> Path:
        """Writes the model that evaluation should use: averaged weights where there are some."""
        if self.average is None:
            return save_model(self.model, folder)
        with self.average.applied():
            return save_model(self.model, folder)


def fit(config: FitConfig, ranks: Ranks, resume: bool = False, show: bool = True) -> Path:
    """Trains and returns the folder of the final checkpoint (`config.json`, `model.safetensors`).

    Args:
        config: the run's settings.
        ranks: from `ranks.started()`.
        resume: continue at the last checkpoint in the output folder, if there is one.
        show: draw a progress bar.

    Raises:
        ConfigError, DataError: before training starts.
        NonFiniteError: losses do not become finite again.
        CheckpointError: there are checkpoints and `resume` is False, or one cannot be read.
    """
    out = Path(config.out or Path("out") / config.name)
    found = list_checkpoints(out / CHECKPOINTS)
    if found and not resume:
        raise CheckpointError(
            f"{out} already holds a run up to step {step_of(found[-1])}; continue it with "
            "--resume or give another folder with --out."
        )
    feed = Feed(config, ranks)
    trainer = Trainer(config, ranks)
    epoch = feed.steps_per_epoch
    total = config.run.steps or config.run.epochs * epoch
    notes = start_notes(config, feed.total_batch)
    if found:
        shared = trainer.load(found[-1])
        feed.sampler.load_state_dict(shared["sampler"])
        notes += changed_settings(json.loads(shared["config"]), to_dict(config))
    if ranks.first:
        out.mkdir(parents=True, exist_ok=True)
        _write(out / CONFIG_FILE, json.dumps(to_dict(config), indent=2) + "\n")
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

    def report(arrived: tuple[int, dict[str, float]] | None) -> None:
        nonlocal waited, since, since_step
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
        now = time.perf_counter()
        speed = (step - since_step) / max(now - since, 1e-9)
        share = waited / max(now - since, 1e-9)
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
        waited, since, since_step = 0.0, now, step

    batches = feed.batches() if trainer.step < total else iter(())
    while trainer.step < total:
        begin = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - begin
        rate = peak * rate_factor(trainer.step, total, config.optimiser)
        values = trainer.train_step(batch, rate)
        report(delayed.push(trainer.step, values))
        if trainer.step % every == 0 or trainer.step == total:
            report(delayed.flush())
            trainer.save(out / CHECKPOINTS, feed.sampler.state_dict(trainer.step))
    report(delayed.flush())


def start_notes(config: FitConfig, total_batch: int) -> list[str]:
    """What a user should know before the run: a batch that the recipe was not made for."""
    settings = config.optimiser
    if total_batch == settings.reference_batch:
        return []
    rate = scaled_rate(settings, total_batch)
    why = "half the batch, two thirds of the rate" if rate != settings.lr else "kept"
    return [
        f"{total_batch} samples per step, the recipe has {settings.reference_batch}: learning rate "
        f"{rate:.3g} instead of {settings.lr:.3g} ({why}); set optimiser.lr and "
        "optimiser.scale_lr=false to choose it yourself"
    ]


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


def _torch_settings(config: FitConfig) -> None:
    torch.set_float32_matmul_precision("high" if config.run.tf32 else "highest")
    if config.run.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    else:
        torch.backends.cudnn.benchmark = True


def _write(file: Path, text: str) -> None:
    part = file.with_suffix(".part")
    part.write_text(text)
    part.replace(file)
