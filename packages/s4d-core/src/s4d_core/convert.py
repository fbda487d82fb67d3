"""Foreign checkpoints to checkpoint folders.

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
from .models import get_config
from .reference_names import reference_names
from .strict import nearest_name

__all__ = ["convert_checkpoint", "read_weights"]

Source = Literal["horizon", "sparseend2end", "linxuewu", "linxuewu_master"]

# What the weights of each code base mean (REFERENCE 0.3 to 0.5, golden/v1_v2 trap 1). Names and
# shapes are often the same, so nothing in a file tells them apart.
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
    "linxuewu": {
        "refine_interval": "default",
        "legacy_yaw_order": False,
        "resize_filter": "pillow_bicubic",
    },
    "linxuewu_master": {
        "refine_interval": "elapsed",
        "legacy_yaw_order": False,
        "resize_filter": "pillow_bicubic",
    },
}
# Names of the first v1 code, and what they became.
_RENAMED = {
    "head.anchor": "head.instance_bank.anchor",
    "head.instance_feature.weight": "head.instance_bank.instance_feature",
}
# Where training frameworks put the weights inside a file.
_CONTAINERS = ("state_dict", "model", "module", "model_state_dict")


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
        source: v3: "horizon" (HorizonRobotics/Sparse4D) or "sparseend2end"
            (ThomasVonWu/SparseEnd2End). v1 and v2: "linxuewu" (linxuewu/Sparse4D, branch main), or
            "linxuewu_master" for v1 weights trained with the first code (branch master). It
            decides what the same weights mean, and cannot be seen in the file: the v3 codes add
            the yaw residual differently and shrink images with different filters, the v1 codes
            divide by different time steps.
        model: the architecture in the file, by name or as a configuration. The switches above
            are set by `source`, whatever this says.

    A file without the depth branch, which only training uses, gives a model without it. Weights
    of a caffe-style ResNet take BGR images: the channels of their first layer are put in the order
    RGB.

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
    if config.num_temporal or config.queue is None:
        meaning.pop("refine_interval", None)  # only v1 with past frames has a choice
    config = replace(config, image=image, **meaning)
    found = {_RENAMED.get(k, k): v for k, v in read_weights(src).items()}
    if config.depth is not None and not any(k.startswith("depth_branch.") for k in found):
        config = replace(config, depth=None)
    target = empty_model(config)
    shapes = target.state_dict()
    names = reference_names(shapes, config)
    own = {theirs: shapes[ours] for ours, theirs in names.items()}
    for name, value in own.items():
        if name.endswith("num_batches_tracked"):  # files from before torch 0.4.1 have none
            found.setdefault(name, torch.zeros(value.shape, dtype=value.dtype))
    check_weights(own, found, str(src), config.name)
    if getattr(config.backbone, "style", None) == "caffe":
        found["img_backbone.conv1.weight"] = found["img_backbone.conv1.weight"].flip(1)
    fill(target, {ours: found[theirs] for ours, theirs in names.items()})
    for name, value in target.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{src}: weight {names[name]} holds NaN or infinity")
    return save_checkpoint(target, dst)


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
