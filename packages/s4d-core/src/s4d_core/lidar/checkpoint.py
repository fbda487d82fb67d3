"""Encoder checkpoints: a folder with ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import CheckpointError
from .config import SparseEncoderConfig, encoder_config
from .convert import Layout, convert_encoder_state
from .encoder import SparseEncoder, build_encoder

__all__ = [
    "convert_encoder_checkpoint",
    "load_encoder",
    "read_encoder_checkpoint",
    "save_encoder",
]

_CONFIG, _WEIGHTS, _FORMAT = "config.json", "model.safetensors", 1


def save_encoder(encoder: SparseEncoder, folder: str | os.PathLike[str]) -> Path:
    """Write config and weights; each file is written beside and renamed. Returns the folder."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    weights = path / (_WEIGHTS + ".part")
    save_file({k: v.detach().contiguous() for k, v in encoder.state_dict().items()}, weights)
    config = path / (_CONFIG + ".part")
    content = {"format": _FORMAT, "lidar_encoder": encoder.config.to_dict()}
    config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    weights.replace(path / _WEIGHTS)
    config.replace(path / _CONFIG)
    return path


def load_encoder(folder: str | os.PathLike[str]) -> SparseEncoder:
    """Read a folder of :func:`save_encoder`: on the CPU, in eval mode.

    Raises:
        CheckpointError: a file is missing or damaged, or weights and config disagree.
        ConfigError: the config has unknown fields or impossible values.
    """
    path = Path(folder)
    try:
        content = json.loads((path / _CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(path / _WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not an encoder checkpoint: {error}") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f"{path / _CONFIG}: expected format {_FORMAT} of a lidar encoder")
    encoder = build_encoder(SparseEncoderConfig.from_dict(content.get("lidar_encoder", {})))
    try:
        encoder.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {str(error).splitlines()[-1].strip()}") from None
    return encoder.eval()


def read_encoder_checkpoint(
    source: str | os.PathLike[str],
    model: str | SparseEncoderConfig = "nusc_centerpoint_voxelnet_0075voxel",
    layout: Layout = "auto",
) -> SparseEncoder:
    """The encoder of a CenterPoint or BEVFusion ``.pth`` (spconv 1.x or 2.x): on the CPU, in eval
    mode.

    The file is read with ``weights_only=True``: tensors and plain data, no code.

    Raises:
        CheckpointError: unreadable file, or weights that do not fit ``model``.
    """
    config = encoder_config(model) if isinstance(model, str) else model
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"cannot read {os.fspath(source)}: {reason}") from None
    if isinstance(content, dict):
        content = content.get("state_dict", content.get("model", content))
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{os.fspath(source)}: expected a state dict, got {type(content).__name__}"
        )
    state = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    encoder = build_encoder(config)
    encoder.load_state_dict(convert_encoder_state(state, config, layout))
    return encoder.eval()


def convert_encoder_checkpoint(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    model: str | SparseEncoderConfig = "nusc_centerpoint_voxelnet_0075voxel",
    layout: Layout = "auto",
) -> Path:
    """Convert a foreign checkpoint (:func:`read_encoder_checkpoint`) once, into a folder.

    Args:
        source: the ``.pth`` file.
        folder: where to; :func:`load_encoder` reads it.
        model: name or config of the encoder that was trained.
        layout: order of the weights, "spconv1" or "spconv2"; "auto" tells by the shapes.

    Raises:
        CheckpointError: unreadable file, or weights that do not fit ``model``.
    """
    return save_encoder(read_encoder_checkpoint(source, model, layout), folder)
