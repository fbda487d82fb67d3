"""Named configurations, and models with fresh weights."""

from __future__ import annotations

import fnmatch
from dataclasses import replace

from torch import nn

from .anchors import prepare_anchors
from .config import Sparse4DConfig
from .errors import ConfigError
from .family import MODELS, sparse4dv3_r50
from .model import Sparse4D
from .strict import nearest_name

__all__ = ["build_model", "get_config", "list_models", "reduced_config"]


def reduced_config(
    config: Sparse4DConfig | None = None,
    embed_dims: int = 64,
    image_size: tuple[int, int] = (64, 176),
    num_anchors: int = 100,
    num_temporal: int = 40,
    num_layers: int = 3,
    num_output: int = 50,
) -> Sparse4DConfig:
    """A configuration with fewer channels, instances and decoders and the same backbone.

    The defaults, applied to a published configuration, give the small models of the reference
    comparisons.

    Args:
        config: what to reduce; None: `sparse4dv3_r50`.
        embed_dims: a multiple of 8; anchor encoder branches keep their proportions.
        num_temporal: not looked at where the model carries no instances.
    """
    config = config or sparse4dv3_r50()
    old = config.embed_dims
    position, size, yaw, velocity = (
        width * embed_dims // old for width in config.anchor_encoder.dims
    )
    carries = config.num_temporal > 0
    return replace(
        config,
        name=f"{config.name}_reduced",
        embed_dims=embed_dims,
        image=replace(config.image, size=image_size),
        anchor_encoder=replace(config.anchor_encoder, dims=(position, size, yaw, velocity)),
        decoder=replace(
            config.decoder,
            num_layers=num_layers,
            num_single_frame=config.decoder.num_single_frame if carries else num_layers,
            ffn_channels=config.decoder.ffn_channels * embed_dims // old,
        ),
        num_anchors=num_anchors,
        num_temporal=num_temporal if carries else 0,
        num_output=num_output,
    )


def list_models(pattern: str = "*") -> list[str]:
    """Names that `build_model` and `get_config` know.

    Args:
        pattern: shell-style, such as `"*r101*"` or `"sparse4dv2*"`.
    """
    return sorted(fnmatch.filter(MODELS, pattern))


def get_config(name: str) -> Sparse4DConfig:
    """The named configuration.

    Raises:
        ConfigError: no such name.
    """
    if name not in MODELS:
        known = ", ".join(list_models())
        raise ConfigError(f"no model {name!r}{nearest_name(name, MODELS)}; there are: {known}")
    return MODELS[name]()


def build_model(name_or_config: str | Sparse4DConfig, anchors: object = None) -> Sparse4D:
    """A model with freshly initialised weights, in training mode.

    Args:
        name_or_config: a name of `list_models`, or a configuration.
        anchors: (num_anchors or more, 11) array or tensor of start boxes; None: the same
            documented ones every time, see `default_anchors`.

    Random numbers come from torch's global generator: seed it for the same weights.

    Raises:
        ConfigError: no such name.
        InvalidInputError: anchors of another shape.
    """
    config = get_config(name_or_config) if isinstance(name_or_config, str) else name_or_config
    model = Sparse4D(config, prepare_anchors(anchors, config.num_anchors))
    init_weights(model)
    return model


def init_weights(model: Sparse4D) -> None:
    """The reference's initialisation, except that fixed key points keep their configured values.

    Backbone and pyramid initialise themselves. In the decoders matrices are Xavier uniform, as are
    learned start features; sampling weights start equal everywhere (zero), class biases at a prior
    of 0.01. Anchor encoder, refinement, depth branch and depth reweighting keep torch's defaults.
    """
    model.backbone.init_weights()
    model.neck.init_weights()
    if model.config.learned_features:
        nn.init.xavier_uniform_(model.head.bank.feature)
    for layer in model.head.decoders:
        aggregation = layer.aggregation
        parts: list[nn.Module | None] = [
            layer.temporal_attention,
            layer.self_attention,
            aggregation.camera_encoder,
            aggregation.fusion,
            layer.ffn,
        ]
        for part in parts:
            for parameter in part.parameters() if part is not None else ():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        nn.init.zeros_(aggregation.weights.weight)
        nn.init.zeros_(aggregation.weights.bias)
        for linear in (aggregation.output, aggregation.key_points.learned):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        if aggregation.fusion is not None:
            nn.init.zeros_(aggregation.fusion.linear.bias)
