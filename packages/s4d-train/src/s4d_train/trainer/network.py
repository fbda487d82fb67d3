"""The network of a run: built from settings, with its start weights and batch norm."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from s4d_core import (
    CheckpointError,
    ImageConfig,
    Sparse4D,
    Sparse4DConfig,
    TimmConfig,
    build_model,
    get_config,
    load_backbone,
    load_checkpoint,
    timm_config,
)

from ..configs.config import FitConfig
from ..errors import ConfigError, S4DError

BOX_COLUMNS = 11


def model_config(config: FitConfig) -> Sparse4DConfig:
    """The model's configuration with the run's image size, cameras, classes and batch norm.

    Raises:
        ConfigError: the model is not known, or the depth maps do not fit its depth branch.
    """
    base = named_model(config.model.name)
    data, model = config.data, config.model
    image = ImageConfig(
        data.image_size,
        base.image.mean,
        base.image.std,
        data.resize_filter,  # type: ignore[arg-type]  # checked by ImageConfig's users
    )
    if model.backbone:
        base = base.replace(backbone=named_backbone(model.backbone, image.size))
    wanted = {"norm_eval": model.batch_norm == "frozen", "checkpointing": model.checkpointing}
    known = {f.name for f in dataclasses.fields(base.backbone)}  # a transformer has no batch norm
    backbone: Any = base.backbone
    backbone = dataclasses.replace(backbone, **{n: v for n, v in wanted.items() if n in known})
    depth = base.depth if data.depth_strides and config.loss.depth > 0 else None
    if depth is not None:
        _check_depth(base.replace(image=image, backbone=backbone), data.depth_strides)
    decoder, aggregation = base.decoder, base.aggregation
    if model.dropout is not None:
        decoder = dataclasses.replace(decoder, dropout=model.dropout)
        aggregation = dataclasses.replace(
            aggregation,
            dropout=model.dropout,
            output_dropout=min(model.dropout, aggregation.output_dropout),
        )
    return base.replace(
        decoder=decoder,
        aggregation=aggregation,
        image=image,
        backbone=backbone,
        depth=depth,
        camera_names=tuple(data.camera_names),
        class_names=tuple(data.class_names),
    )


def _check_depth(model: Sparse4DConfig, strides: Sequence[int]) -> None:
    """Depth maps of the data must have the sizes of the pyramid's levels."""
    assert model.depth is not None
    if len(strides) != model.depth.num_levels:
        raise ConfigError(
            f"setting 'data.depth_strides' has {len(strides)} levels, the depth branch "
            f"of {model.name} has {model.depth.num_levels}; give as many strides, or none."
        )
    height, width = model.image.size
    sizes = [(height // stride, width // stride) for stride in strides]
    found = list(model.level_sizes[: len(strides)])
    if sizes != found:
        raise ConfigError(
            f"setting 'data.depth_strides': {list(strides)} give depth maps of {sizes}, the "
            f"pyramid's levels have {found}; give their strides, or none."
        )


def named_model(name: str) -> Sparse4DConfig:
    """A model by its name, or by the JSON file of a model configuration or checkpoint.

    Raises:
        ConfigError: there is no such name or file, or it is not a model configuration.
    """
    try:
        if not name.endswith(".json"):
            return get_config(name)
        content = json.loads(Path(name).read_text())
        return Sparse4DConfig.from_dict(content.get("model", content))
    except (S4DError, OSError, ValueError) as error:
        raise ConfigError(f"setting 'model.name': {error}") from None


def named_backbone(name: str, image_size: tuple[int, int]) -> TimmConfig:
    """A backbone of timm.

    Raises:
        ConfigError: not `timm/NAME`, timm is not there, or it has no such feature extractor.
    """
    if not name.startswith("timm/"):
        raise ConfigError(f"setting 'model.backbone': expected timm/NAME, got {name!r}")
    try:
        return timm_config(name, image_size)
    except S4DError as error:
        raise ConfigError(f"setting 'model.backbone': {error}") from None


def build_network(config: FitConfig) -> Sparse4D:
    """The model on the CPU, in training mode, with its start weights.

    Raises:
        ConfigError: a file of anchors or weights is missing or has another shape.
    """
    settings, wanted = config.model, model_config(config)
    model = build_model(wanted, read_anchors(settings.anchors, wanted.num_anchors))
    if settings.backbone_weights:
        try:
            load_backbone(model, settings.backbone_weights)
        except CheckpointError as error:
            raise ConfigError(f"setting 'model.backbone_weights': {error}") from None
    if settings.init:
        start = load_checkpoint(settings.init).state_dict()
        load_matching(model, start, settings.init)
    if settings.batch_norm == "frozen":
        freeze_norms(model.backbone)
    elif settings.batch_norm == "sync":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model.train()


def read_anchors(path: str, count: int) -> np.ndarray | None:
    """Anchors (count or more, 11) of an .npy file; None for an empty `path`.

    Raises:
        ConfigError: no such file, not an array, or another shape.
    """
    if not path:
        return None
    try:
        anchors = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"setting 'model.anchors': cannot read {path} ({error}).") from None
    if anchors.ndim != 2 or anchors.shape[1] != BOX_COLUMNS or anchors.shape[0] < count:
        raise ConfigError(
            f"setting 'model.anchors': expected at least ({count}, {BOX_COLUMNS}) anchors, "
            f"{Path(path).name} has {anchors.shape}; make them with 's4d-train anchors'."
        )
    if not np.isfinite(anchors).all():
        raise ConfigError(f"setting 'model.anchors': {Path(path).name} has NaN or infinite values.")
    return np.asarray(anchors)


def load_matching(model: nn.Module, weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Loads the weights of a checkpoint; the depth branch may be missing on either side.

    Raises:
        ConfigError: other weights are missing or have another shape.
    """
    own = model.state_dict()
    differ = own.keys() ^ weights.keys()
    wrong = sorted(k for k in differ if not k.startswith("depth_branch."))
    wrong += [k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape]
    if wrong:
        raise ConfigError(
            f"setting 'model.init': {source} does not fit the model; first difference: {wrong[0]}."
        )
    model.load_state_dict({**own, **{k: v for k, v in weights.items() if k in own}})


def freeze_norms(module: nn.Module) -> None:
    """Batch norms keep their scale and shift (their statistics are fixed by the configuration)."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for parameter in part.parameters():
                parameter.requires_grad_(False)
