"""Named configurations, and models with fresh weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from .anchors import prepare_anchors
from .config import (
    AnchorEncoderConfig,
    DecoderConfig,
    ImageConfig,
    ResNetConfig,
    Sparse4DConfig,
)
from .errors import ConfigError
from .model import Sparse4D
from .strict import nearest_name

__all__ = ["build_model", "get_config", "list_models", "reduced_config"]


def sparse4dv3_r50() -> Sparse4DConfig:
    """Sparse4Dv3 with ResNet-50 at 256 x 704, as published (REFERENCE B4, B5)."""
    return Sparse4DConfig(name="sparse4dv3_r50")


def sparse4dv3_tiny() -> Sparse4DConfig:
    """The same model made small: 128 x 352, under 1.9 million parameters, quick on a CPU."""
    return Sparse4DConfig(
        name="sparse4dv3_tiny",
        embed_dims=64,
        image=ImageConfig(size=(128, 352)),
        backbone=ResNetConfig(
            block="basic", layers=(2, 2, 2, 2), widths=(24, 48, 80, 112), stem_channels=24
        ),
        anchor_encoder=AnchorEncoderConfig(dims=(32, 8, 8, 16)),
        decoder=DecoderConfig(num_layers=4, num_heads=4, ffn_channels=256, dropout=0.0),
        num_anchors=300,
        num_temporal=200,
        num_output=200,
    )


_MODELS: dict[str, Callable[[], Sparse4DConfig]] = {
    "sparse4dv3_r50": sparse4dv3_r50,
    "sparse4dv3_tiny": sparse4dv3_tiny,
}


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

    The defaults, applied to `sparse4dv3_r50`, give the small model of the reference comparisons.

    Args:
        config: what to reduce; None: `sparse4dv3_r50`.
        embed_dims: a multiple of 8; anchor encoder branches keep their proportions.
    """
    config = config or sparse4dv3_r50()
    old = config.embed_dims
    position, size, yaw, velocity = (
        width * embed_dims // old for width in config.anchor_encoder.dims
    )
    return replace(
        config,
        name=f"{config.name}_reduced",
        embed_dims=embed_dims,
        image=replace(config.image, size=image_size),
        anchor_encoder=replace(config.anchor_encoder, dims=(position, size, yaw, velocity)),
        decoder=replace(
            config.decoder,
            num_layers=num_layers,
            ffn_channels=config.decoder.ffn_channels * embed_dims // old,
        ),
        num_anchors=num_anchors,
        num_temporal=num_temporal,
        num_output=num_output,
    )


def list_models() -> list[str]:
    """Names that `build_model` and `get_config` know."""
    return sorted(_MODELS)


def get_config(name: str) -> Sparse4DConfig:
    """The named configuration.

    Raises:
        ConfigError: no such name.
    """
    if name not in _MODELS:
        known = ", ".join(list_models())
        raise ConfigError(f"no model {name!r}{nearest_name(name, _MODELS)}; there are: {known}")
    return _MODELS[name]()


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

    Backbone and pyramid initialise themselves. In the decoders matrices are Xavier uniform,
    sampling weights start equal everywhere (zero), class biases at a prior of 0.01. Anchor
    encoder, refinement and the depth branch keep torch's defaults.
    """
    model.backbone.init_weights()
    model.neck.init_weights()
    for layer in model.head.decoders:
        parts: list[nn.Module | None] = [
            layer.temporal_attention,
            layer.self_attention,
            layer.aggregation.camera_encoder,
            layer.ffn,
        ]
        for part in parts:
            for parameter in part.parameters() if part is not None else ():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        nn.init.zeros_(layer.aggregation.weights.weight)
        nn.init.zeros_(layer.aggregation.weights.bias)
        for linear in (layer.aggregation.output, layer.aggregation.key_points.learned):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
