"""Checkpoint folders: `config.json` beside `model.safetensors`."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .box import BOX_DIMS
from .config import Sparse4DConfig
from .errors import CheckpointError, ConfigError
from .model import Sparse4D

__all__ = ["load_checkpoint", "save_checkpoint"]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CHECKPOINT_FORMAT = 1


def save_checkpoint(model: Sparse4D, folder: str | os.PathLike[str]) -> Path:
    """Write a model's configuration and weights; each file is written beside and renamed.

    Returns:
        the folder.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    weights = path / (WEIGHTS_FILE + ".part")
    save_file(tensors, weights, metadata={"format": "pt"})
    content = {"format": CHECKPOINT_FORMAT, "model": model.config.to_dict()}
    config = path / (CONFIG_FILE + ".part")
    config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    weights.replace(path / WEIGHTS_FILE)
    config.replace(path / CONFIG_FILE)
    return path


def load_checkpoint(folder: str | os.PathLike[str]) -> Sparse4D:
    """Read a checkpoint folder: the model on the CPU, in float32 and eval mode.

    Raises:
        CheckpointError: a file is missing or unreadable, or weights and configuration disagree.
        ConfigError: the configuration has unknown fields or impossible values.
    """
    path = Path(folder)
    config = _read_config(path)
    weights = path / WEIGHTS_FILE
    if not weights.is_file():
        raise CheckpointError(f"{path}: {WEIGHTS_FILE} is missing; is this a checkpoint folder?")
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{weights}: not a readable safetensors file ({error})") from error
    model = empty_model(config)
    check_weights(model.state_dict(), tensors, str(path), model.config.name)
    fill(model, tensors)
    return model


def empty_model(config: Sparse4DConfig) -> Sparse4D:
    """A model in eval mode whose weights have shapes but no values: fill it with `fill`.

    Random initialisation of weights that are about to be replaced would take seconds.
    """
    with torch.device("meta"):
        model = Sparse4D(config, torch.zeros(config.num_anchors, BOX_DIMS)).eval()
    model.make_tables()
    return model


def fill(model: Sparse4D, weights: Mapping[str, Tensor]) -> None:
    """Give an `empty_model` its weights, as float32 copies.

    Copies, because tensors of a safetensors file are views of the mapped file.
    """
    values = {
        name: value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        for name, value in weights.items()
    }
    model.load_state_dict(values, assign=True)


def check_weights(
    own: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str, target: str
) -> None:
    """Names and shapes of `found` must be those of `own`, all of them and nothing else.

    Raises:
        CheckpointError: they are not; the message lists a few of the differences.
    """
    missing, unexpected = own.keys() - found.keys(), found.keys() - own.keys()
    if missing or unexpected:
        raise CheckpointError(
            f"{source} is not a checkpoint of {target}: "
            f"{len(missing)} weights missing{_some(missing)}, "
            f"{len(unexpected)} unexpected{_some(unexpected)}"
        )
    wrong = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(value.shape)}"
        for name, value in own.items()
        if found[name].shape != value.shape
    ]
    if wrong:
        raise CheckpointError(
            f"{source} does not fit {target}: {len(wrong)} weights have another shape{_some(wrong)}"
        )


def _some(names: Iterable[str], count: int = 3) -> str:
    """` (a, b, c, ...)`, or nothing for no names; many of one part are given by their number."""
    ordered = sorted(names)
    if not ordered:
        return ""
    text = ", ".join(ordered[:count]) + (", ..." if len(ordered) > count else "")
    parts = Counter(".".join(name.split(".")[:2]) for name in ordered)
    if len(ordered) > count:
        largest = ", ".join(f"{part} {n}" for part, n in parts.most_common(count))
        text += f"; most of {largest}"
    return f" ({text})"


def _read_config(path: Path) -> Sparse4DConfig:
    file = path / CONFIG_FILE
    if not file.is_file():
        raise CheckpointError(f"{path}: {CONFIG_FILE} is missing; is this a checkpoint folder?")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file}: not readable JSON ({error})") from error
    if not isinstance(content, dict) or "model" not in content:
        raise CheckpointError(f"{file}: expected an object with 'format' and 'model'")
    if content.get("format") != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{file}: checkpoint format {content.get('format')!r} is not known; this version "
            f"reads format {CHECKPOINT_FORMAT}"
        )
    try:
        return Sparse4DConfig.from_dict(content["model"])
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
