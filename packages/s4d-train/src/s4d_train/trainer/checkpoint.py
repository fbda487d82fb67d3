"""Training checkpoints: folders that appear whole or not at all.

    checkpoints/step_00000500/
        model/              config.json and model.safetensors: what s4d-core loads
        training.pt         optimiser, schedule position, average, scale: the same on every rank
        rank_0.pt ...       random states, sampler, temporal states: one file per rank

A folder is written under another name and renamed when all ranks have written their part, so what
carries a step number is complete. Files are loaded with `weights_only=True`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from .ranks import Ranks

MODEL = "model"
SHARED = "training.pt"
_STEP = re.compile(r"step_(\d{8})$")


def folder_name(step: int) -> str:
    """Name of the checkpoint after `step` steps."""
    return f"step_{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _STEP.fullmatch(path.name))


def step_of(path: Path) -> int:
    """Number of steps done at checkpoint `path`."""
    match = _STEP.fullmatch(path.name)
    if match is None:
        raise CheckpointError(f"{path} is no training checkpoint: expected a folder step_NNNNNNNN.")
    return int(match.group(1))


def save_checkpoint(
    folder: Path,
    step: int,
    ranks: Ranks,
    save_model: Callable[[Path], None],
    shared: Mapping[str, Any],
    own: Mapping[str, Any],
    keep: int,
) -> Path:
    """Writes a checkpoint; every rank calls it.

    Args:
        folder: holds all checkpoints of the run.
        save_model: writes the model into a folder; called on the first rank.
        shared: training state that all ranks have in common; written by the first rank.
        own: state of this rank.
        keep: how many checkpoints stay.
    """
    final = folder / folder_name(step)
    part = folder / f".{final.name}.part"
    if ranks.first:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    ranks.barrier()
    torch.save(dict(own), part / _rank_file(ranks.rank))
    if ranks.first:
        save_model(part / MODEL)
        torch.save({**shared, "step": step, "world": ranks.world}, part / SHARED)
    ranks.barrier()
    if ranks.first:
        if final.exists():
            shutil.rmtree(final)
        part.rename(final)
        for old in list_checkpoints(folder)[: -max(keep, 1)]:
            shutil.rmtree(old, ignore_errors=True)
    ranks.barrier()
    return final


def load_checkpoint(path: Path, ranks: Ranks) -> tuple[dict[str, Any], dict[str, Any]]:
    """The shared state and this rank's own, on the CPU.

    Raises:
        CheckpointError: a file is missing or broken, or the job had another number of ranks.
    """
    shared = _load(path / SHARED)
    if shared.get("world") != ranks.world:
        raise CheckpointError(
            f"{path.name} was written by {shared.get('world')} ranks, this job has {ranks.world}; "
            "resume with as many, or start from its model with --set model.init=PATH."
        )
    return shared, _load(path / _rank_file(ranks.rank))


def _rank_file(rank: int) -> str:
    return f"rank_{rank}.pt"


def _load(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise CheckpointError(
            f"{file.parent.name} has no {file.name}; delete it and resume from an older one."
        )
    try:
        return dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:
        raise CheckpointError(
            f"{file.parent.name}/{file.name} cannot be read ({type(error).__name__}); delete the "
            "folder and resume from an older one."
        ) from error


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """States of torch's generators on the host and on `device`."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states["device"] = _device_module(device).get_rng_state(device)
    return states


def restore_random_states(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Puts the generators where `random_states` found them."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu" and "device" in states:
        _device_module(device).set_rng_state(states["device"], device)


def _device_module(device: torch.device) -> Any:
    """`torch.cuda`, `torch.npu`, ...: the module of a device type."""
    return torch.get_device_module(device)
