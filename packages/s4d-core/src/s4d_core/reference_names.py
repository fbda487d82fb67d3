"""Our weight names and those of the published checkpoints.

HorizonRobotics/Sparse4D, ThomasVonWu/SparseEnd2End and linxuewu/Sparse4D (v1, v2) use the same
names. Their decoders are one flat list of operations (REFERENCE B5.1, C3); ours are objects, so an
operation's place in that list is worked out from the configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from .backbones.config import VoVNetConfig
from .backbones.layouts import Layout, layouts_of
from .config import DecoderConfig, Sparse4DConfig

__all__ = ["reference_name", "reference_names"]

# (our pattern, their text); the first that matches a whole name wins.
_OUTSIDE = (
    (r"backbone\.(.*)", r"img_backbone.\1"),
    (r"neck\.lateral\.(\d+)\.(.*)", r"img_neck.lateral_convs.\1.conv.\2"),
    (r"neck\.output\.(\d+)\.(.*)", r"img_neck.fpn_convs.\1.conv.\2"),
    (r"depth_branch\.convs\.(.*)", r"depth_branch.depth_layers.\1"),
    (r"head\.bank\.anchor", r"head.instance_bank.anchor"),
    (r"head\.bank\.feature", r"head.instance_bank.instance_feature"),
    (r"head\.bank\.handler_fix_scale", r"head.instance_bank.anchor_handler.fix_scale"),
    (r"head\.anchor_encoder\.position\.(.*)", r"head.anchor_encoder.pos_fc.\1"),
    (r"head\.anchor_encoder\.velocity\.(.*)", r"head.anchor_encoder.vel_fc.\1"),
    (r"head\.anchor_encoder\.(size|yaw|output)\.(.*)", r"head.anchor_encoder.\1_fc.\2"),
    (r"head\.instance_attention\.(before|after)\.(.*)", r"head.fc_\1.\2"),
)
_REWEIGHT = (
    (r"blocks\.(\d+)\.expand\.(.*)", r"depth_fc.\1.layers.0.0.\2"),
    (r"blocks\.(\d+)\.reduce\.(.*)", r"depth_fc.\1.layers.1.\2"),
)
# Part of a decoder -> (operation, ((our pattern, their text), ...)).
_ATTENTION = ((r"(.*)", r"attn.\1"),)
_SAME = ((r"(.*)", r"\1"),)
_PARTS: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "temporal_attention": ("temp_gnn", _ATTENTION),
    "self_attention": ("gnn", _ATTENTION),
    "attention_norm": ("norm", _SAME),
    "aggregation": (
        "deformable",
        (
            (r"key_points\.fix_scale", r"kps_generator.fix_scale"),
            (r"key_points\.learned\.(.*)", r"kps_generator.learnable_fc.\1"),
            (r"camera_encoder\.(.*)", r"camera_encoder.\1"),
            (r"weights\.(.*)", r"weights_fc.\1"),
            (r"fusion\.linear\.(.*)", r"temp_module.fusion_layer.\1"),
            (r"output\.(.*)", r"output_proj.\1"),
        ),
    ),
    "aggregation_norm": ("middle_norm", _SAME),
    "ffn": (
        "ffn",
        (
            (r"norm\.(.*)", r"pre_norm.\1"),
            (r"expand\.(.*)", r"layers.0.0.\1"),
            (r"reduce\.(.*)", r"layers.1.\1"),
            (r"shortcut\.(.*)", r"identity_fc.\1"),
        ),
    ),
    "ffn_norm": ("last_norm", _SAME),
    "refinement": (
        "refine",
        (
            (r"box_blocks\.(.*)", r"layers.\1"),
            (r"box_output\.(.*)", r"layers.10.\1"),
            (r"box_scale\.(.*)", r"layers.11.\1"),
            (r"(cls|quality)_blocks\.(.*)", r"\1_layers.\2"),
            (r"(cls|quality)_output\.(.*)", r"\1_layers.6.\2"),
        ),
    ),
}


def reference_name(name: str, config: Sparse4DConfig) -> str:
    """The published name of one of our weights.

    Raises:
        KeyError: there is no such weight in a model of `config`.
    """
    match = re.fullmatch(r"head\.layers\.(\d+)\.(\w+)\.(.*)", name)
    if match and match[2] in _PARTS:
        operation, rules = _PARTS[match[2]]
        place = _places(config.decoder)[int(match[1]), operation]
        return f"head.layers.{place}.{_apply(rules, match[3])}"
    if name.startswith("backbone.") and isinstance(config.backbone, VoVNetConfig):
        # The names of DD3D, as every published detector with this backbone keeps them.
        theirs = _vovnet(config.backbone).rename(name.removeprefix("backbone."), "img_backbone.")
        if theirs is None:
            raise KeyError(name)
        return theirs
    match = re.fullmatch(r"head\.depth_reweight\.(.*)", name)
    if match and config.depth_reweight is not None:
        last = (r"output\.(.*)", rf"depth_fc.{config.depth_reweight.blocks}.\1")
        return "head.depth_module." + _apply((*_REWEIGHT, last), match[1])
    return _apply(_OUTSIDE, name)


@lru_cache(maxsize=4)
def _vovnet(config: VoVNetConfig) -> Layout:
    return layouts_of(config)[0]


def reference_names(names: Iterable[str], config: Sparse4DConfig) -> dict[str, str]:
    """Our names, each with its published name, in the given order."""
    return {name: reference_name(name, config) for name in names}


def _apply(rules: tuple[tuple[str, str], ...], name: str) -> str:
    for pattern, text in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(text)
    raise KeyError(name)


def _places(decoder: DecoderConfig) -> dict[tuple[int, str], int]:
    """(decoder, operation) -> place in the published list of operations."""
    places = {}
    count = 0
    for i in range(decoder.num_layers):
        operations = ["deformable", "ffn", "last_norm", "refine"]
        if decoder.ffn == "residual":
            operations.insert(1, "middle_norm")
        if i > 0 or decoder.first_attention:
            operations = ["gnn", "norm", *operations]
        if i >= decoder.num_single_frame:
            operations = ["temp_gnn", *operations]
        for operation in operations:
            places[i, operation] = count
            count += 1
    return places
