"""What a training step needs: network, optimiser, temporal state, and a checkpoint of them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from s4d_core import Sparse4D
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
    load_checkpoint,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from .gradients import GradientAverage, same_start
from .graphs import GraphedModule
from .guard import GradientScale, StatisticsBackup, clip_gradients
from .lookahead import lookahead, observed
from .network import build_network
from .optimiser import build_optimiser, guarded_step, set_rate
from .precision import Precision
from .ranks import Ranks
from .states import pack_state, unpack_state
from .step import TemporalState, TrainingModule, finite_state, forward_losses, make_targets


class Trainer:
    """Everything that a step needs, and what a checkpoint holds.

    Args:
        config: the run's settings.
        ranks: this process in the job.
        prepare_model: is given the model with its start weights before anything is built on it,
            to change it in place; it must keep the names of the state dict.
    """

    def __init__(
        self,
        config: FitConfig,
        ranks: Ranks,
        prepare_model: Callable[[Sparse4D], object] | None = None,
    ) -> None:
        run = config.run
        self.config, self.ranks, self.device = config, ranks, ranks.device
        self.step = 0
        _torch_settings(config)
        torch.manual_seed(run.seed)
        self.model = build_network(config).to(self.device)
        if prepare_model is not None:
            prepare_model(self.model)
        if self.device.type == "cuda":
            self.model.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.model.compile:
            self.model.backbone.compile()
            self.model.neck.compile()
        precision = Precision.of_training(self.device.type, run.precision, run.head_precision)
        self.module: nn.Module = TrainingModule(self.model, precision)
        self.loss = config.loss
        self.gradients: GradientAverage | None = None
        if run.cuda_graphs and self.device.type == "cuda":
            self.module = GraphedModule(self.module)
            # Recorded work has fixed shapes: as many noisy anchors in every step.
            noise = replace(config.loss.denoising, fixed_size=True)
            self.loss = replace(config.loss, denoising=noise)
            if ranks.world > 1:
                same_start(self.model)
                self.gradients = GradientAverage(self._trained())
        elif ranks.world > 1:
            with warnings.catch_warnings():  # the new name came with torch 2.13
                warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
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

    @property
    def lookahead(self) -> int:
        """Batches after the present one that a step needs."""
        return lookahead(self.model.config)

    def train_step(
        self, batch: Batch, rate: float, following: Sequence[Batch] = ()
    ) -> dict[str, Tensor]:
        """One step on a batch from the loader; returns losses and gradient norm, on the device.

        `following` are the next `lookahead` batches.
        """
        self.statistics.keep(self.step + 1)
        targets = make_targets(batch, self.loss, self.draws, self.device)
        batch = batch.to(self.device, non_blocking=True)
        past = self.temporal
        if self.config.run.reset_sequences:
            past = past.reset(batch.sequence_start)
        images = self.prepare(batch)
        future = observed(self.model, following, self.prepare, self.device)
        losses, self.temporal = forward_losses(
            self.module, images, batch, targets, past, self.loss, self.draws, future
        )
        self.temporal = finite_state(self.temporal)
        total = torch.stack(list(losses.values())).sum()
        self.optimiser.zero_grad(set_to_none=True)
        (total * self.scale.value).backward()
        if self.gradients is not None:
            self.gradients()
        norm, bad = clip_gradients(self._trained(), self.config.optimiser.clip, self.scale.value)
        set_rate(self.optimiser, rate)
        guarded_step(self.optimiser, bad)
        self.scale.update(bad)
        if self.average is not None:
            self.average.update()
        self.step += 1
        # Detached: a loss that is kept would keep the whole pass alive.
        values = {**losses, "loss": total, "grad_norm": norm}
        return {name: value.detach() for name, value in values.items()}

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

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


def _torch_settings(config: FitConfig) -> None:
    torch.set_float32_matmul_precision("high" if config.run.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = config.run.tf32  # convolutions; torch's default is True
    if config.run.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    else:
        torch.backends.cudnn.benchmark = True
