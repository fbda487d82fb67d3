"""The settings of a training run. `recipes` holds the named ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..data.config import DataConfig
from ..objectives.detection import LossConfig


@dataclass(frozen=True)
class ModelSettings:
    """Which network, and how it starts.

    Attributes:
        name: model of `s4d_core.list_models()`, or the `config.json` of a model or checkpoint.
        backbone: `timm/NAME`: a model of timm instead of the model's own backbone (needs
            `s4d-core[timm]`); empty = the model's own.
        anchors: .npy file of `s4d-train anchors`; empty = the model's own default.
        backbone_weights: file of published weights for the backbone, see
            `s4d_core.load_backbone`; empty = random weights.
        init: checkpoint folder to start from (weights only); empty = none.
        batch_norm: `train` (each device its own statistics), `sync` (shared over the ranks) or
            `frozen` (running statistics, no gradient).
        dropout: replaces the model's own dropout rates; None keeps them.
        checkpointing: recompute backbone activations in the backward pass to save memory.
        compile: compile backbone and neck with torch.compile.
    """

    name: str = "sparse4dv3_r50"
    backbone: str = ""
    anchors: str = ""
    backbone_weights: str = ""
    init: str = ""
    batch_norm: Literal["train", "sync", "frozen"] = "train"
    dropout: float | None = None
    checkpointing: bool = False
    compile: bool = False


@dataclass(frozen=True)
class OptimiserSettings:
    """AdamW, clipping, warm-up and cosine.

    Attributes:
        lr: learning rate at `reference_batch` samples per step.
        reference_batch: total batch that `lr` was published for.
        scale_lr: adapt `lr` to another total batch, see `schedule.scaled_rate`.
        backbone_multiplier: factor on the rate of the backbone.
        weight_decay: of all parameters.
        clip: largest L2 norm of all gradients together.
        warmup_steps, warmup_ratio: linear warm-up from `warmup_ratio` times the rate.
        min_ratio: the cosine ends at this times the rate.
        ema: decay of the weights' moving average; 0 = none is kept.
    """

    lr: float = 6e-4
    reference_batch: int = 48
    scale_lr: bool = True
    backbone_multiplier: float = 0.5
    weight_decay: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 25.0
    warmup_steps: int = 500
    warmup_ratio: float = 1.0 / 3.0
    min_ratio: float = 1e-3
    ema: float = 0.0


@dataclass(frozen=True)
class RunSettings:
    """Length, precision and bookkeeping of a run.

    Attributes:
        batch: samples per device and step.
        epochs: passes over the training split; `steps` overrides it where it is not 0.
        precision: of backbone and neck. The head runs in float32 unless `head_precision` is
            `same`; losses are always float32, and on the CPU everything is.
        loss_scale: initial scale of fp16 gradients; it grows and shrinks by itself.
        seed: of sampler, augmentation, dropout and denoising noise.
        workers: loader processes per device.
        log_every, save_every: steps; `save_every` 0 = each epoch.
        keep: checkpoints that stay on disk; older ones are removed.
        non_finite: what a NaN or infinite loss does: `skip` the step or `stop` the run.
        max_skips: with `skip`, the run stops after this many bad steps in a row.
        reset_sequences: start the temporal state anew where a slot of the batch begins another
            sequence, as on board. False: the published recipe, which lets time gaps decide.
        deterministic: ask torch for deterministic kernels.
        cuda_graphs: record the network's passes once and replay them, which relieves the host. Has
            an effect on CUDA only; needs `batch_norm` other than `sync`.
        tf32: let float32 matrix products and convolutions use TF32 where the device has it.
    """

    batch: int = 6
    epochs: int = 100
    steps: int = 0
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    head_precision: Literal["fp32", "same"] = "fp32"
    loss_scale: float = 32.0
    seed: int = 100
    workers: int = 6
    log_every: int = 50
    save_every: int = 0
    keep: int = 3
    non_finite: Literal["skip", "stop"] = "skip"
    max_skips: int = 20
    reset_sequences: bool = True
    deterministic: bool = False
    cuda_graphs: bool = False
    tf32: bool = True


@dataclass(frozen=True)
class FitConfig:
    """Everything that `s4d-train fit` needs.

    Attributes:
        split: training split of the converted index.
        out: output folder; empty = `out/<name>`.
    """

    name: str
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    run: RunSettings = field(default_factory=RunSettings)
    split: str = "train"
    out: str = ""
