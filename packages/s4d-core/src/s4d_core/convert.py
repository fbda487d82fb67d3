"""Foreign checkpoints to checkpoint folders, and foreign backbone weights into a model.

Files are read with `weights_only=True`: tensors and plain data, no code.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .checkpoint import check_weights, empty_model, fill, save_checkpoint
from .config import Sparse4DConfig
from .errors import CheckpointError
from .model import Sparse4D
from .models import get_config
from .reference_names import reference_names
from .strict import nearest_name

__all__ = ["convert_checkpoint", "load_backbone"]

Source = Literal["horizon", "sparseend2end"]

# What the weights of each code base mean (REFERENCE 0.3 to 0.5). Names and shapes are the same in
# both, so nothing in a file tells them apart.
_MEANING: dict[str, dict[str, Any]] = {
    "horizon": {
        "refine_yaw": True,
        "legacy_yaw_order": True,
        "resize_filter": "pillow_bicubic",
    },
    "sparseend2end": {
        "refine_yaw": False,
        "legacy_yaw_order": True,
        "resize_filter": "cv2_linear",
    },
}
# Where training frameworks put the weights inside a file.
_CONTAINERS = ("state_dict", "model", "model_state_dict")


def convert_checkpoint(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    source: Source = "horizon",
    model: str | Sparse4DConfig = "sparse4dv3_r50",
) -> Path:
    """Turn a published `.pth` file into a checkpoint folder.

    Args:
        src: the file.
        dst: the folder to write.
        source: "horizon" (HorizonRobotics/Sparse4D) or "sparseend2end" (ThomasVonWu/SparseEnd2End).
            It decides what the same weights mean, and cannot be seen in the file: the two add the
            yaw residual differently, and shrink images with different filters.
        model: the architecture in the file, by name or as a configuration. The switches above
            are set by `source`, whatever this says.

    Returns:
        the folder.

    Raises:
        CheckpointError: not a checkpoint, or not of this architecture.
        ConfigError: no such model name.
    """
    if source not in _MEANING:
        hint = nearest_name(str(source), _MEANING)
        raise CheckpointError(
            f"unknown source {source!r}{hint}; expected one of {', '.join(_MEANING)}"
        )
    config = get_config(model) if isinstance(model, str) else model
    meaning = dict(_MEANING[source])
    image = replace(config.image, resize_filter=meaning.pop("resize_filter"))
    config = replace(config, image=image, **meaning)
    found = read_weights(src)
    target = empty_model(config)
    shapes = target.state_dict()
    names = reference_names(shapes, config)
    own = {theirs: shapes[ours] for ours, theirs in names.items()}
    check_weights(own, found, str(src), config.name)
    fill(target, {ours: found[theirs] for ours, theirs in names.items()})
    for name, value in target.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{src}: weight {names[name]} holds NaN or infinity")
    return save_checkpoint(target, dst)


def load_backbone(model: Sparse4D, src: str | os.PathLike[str]) -> None:
    """Load ImageNet weights of a torchvision ResNet (`resnet50-*.pth`) into the backbone.

    The classifier (`fc.*`) is left out. Files from before torch 0.4.1 have no batch counters;
    these then stay 0.

    Raises:
        CheckpointError: not a weight file, or of another network.
    """
    found = {k: v for k, v in read_weights(src).items() if not k.startswith("fc.")}
    own = model.backbone.state_dict()
    for name, value in own.items():
        if name.endswith("num_batches_tracked"):
            found.setdefault(name, torch.zeros_like(value))
    check_weights(own, found, str(src), f"the backbone of {model.config.name}")
    model.backbone.load_state_dict(found)


def read_weights(src: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The name-to-tensor table of a `.pth` file, without container and `module.` prefixes.

    Raises:
        CheckpointError: unreadable, or no such table inside.
    """
    path = Path(src)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: not a file of tensors and plain data that torch can read; expected a .pth "
            "checkpoint. If it holds other Python objects, save its state_dict alone"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise CheckpointError(f"{path}: not a torch checkpoint ({reason})") from error
    for name in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    weights = {}
    if isinstance(content, Mapping):
        weights = {k: v for k, v in content.items() if isinstance(v, Tensor)}
    if not weights:
        raise CheckpointError(
            f"{path}: no weights found; expected a state dict, or one under "
            + " or ".join(repr(name) for name in _CONTAINERS)
        )
    return {str(name).removeprefix("module."): value for name, value in weights.items()}
