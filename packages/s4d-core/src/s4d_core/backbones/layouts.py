"""Under which names published files hold the weights of our backbones.

Sources of the names: the model code of torchvision, MMDetection (FCOS3D, nuImages Cascade Mask
R-CNN), TRI-ML/dd3d, baaivision/EVA (EVA-02 pre-training and its detectors), exiawsh/StreamPETR
and timm.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .config import BackboneConfig, EvaConfig, ResNetConfig, VoVNetConfig

__all__ = ["Layout", "layouts_of"]

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Layout:
    """The names of one code base.

    Attributes:
        name: of the code base, for messages.
        prefixes: that the names may all have, most specific first; "" where it may be none.
        rules: (our pattern, their text); the first that matches a whole name counts.
        extra: pattern of their names that we have no use for: classifiers, fixed tables.
        bgr: the network takes blue first.
    """

    name: str
    prefixes: tuple[str, ...]
    rules: Rules
    extra: str = r"(?!)"
    bgr: bool = False

    def rename(self, name: str, prefix: str) -> str | None:
        """Their name of our weight `name`, or None where they have none."""
        for pattern, text in self.rules:
            match = re.fullmatch(pattern, name)
            if match:
                return prefix + match.expand(text)
        return None


_SAME: Rules = ((r"(.*)", r"\1"),)
_DETECTOR = ("img_backbone.", "backbone.")
_TORCHVISION = Layout("torchvision or MMDetection", (*_DETECTOR, ""), _SAME, r"fc\..*")
_CAFFE = Layout("Detectron2/Caffe or FCOS3D", (*_DETECTOR, ""), _SAME, r"fc\..*", bgr=True)


def _dd3d(config: VoVNetConfig) -> Layout:
    rules = [(rf"stem\.{i}\.(conv|norm)\.(.*)", rf"stem.stem_{i + 1}/\1.\2") for i in range(3)]
    for stage, count in enumerate(config.blocks):
        for block in range(count):
            ours, theirs = rf"stages\.{stage}\.{block}\.", f"OSA{stage + 2}_{block + 1}"
            start = f"stage{stage + 2}.{theirs}."
            rules += [
                (
                    ours + r"layers\.(\d+)\.(conv|norm)\.(.*)",
                    rf"{start}layers.\1.{theirs}_\1/\2.\3",
                ),
                (ours + r"concat\.(conv|norm)\.(.*)", rf"{start}concat.{theirs}_concat/\1.\2"),
                (ours + r"attention\.(.*)", rf"{start}ese.\1"),
            ]
    prefixes = ("backbone.bottom_up.", "img_backbone.", "backbone.", "bottom_up.", "")
    return Layout("DD3D", prefixes, tuple(rules), bgr=True)


_BLOCK = r"stages\.(\d)\.(\d)\."
_TIMM_BLOCK = r"stages.\1.blocks.\2."
_VOVNET_TIMM = Layout(
    "timm",
    ("",),
    (
        (r"stem\.(\d)\.conv\.(.*)", r"stem.\1.conv.\2"),
        (r"stem\.(\d)\.norm\.(.*)", r"stem.\1.bn.\2"),
        (_BLOCK + r"layers\.(\d)\.conv\.(.*)", _TIMM_BLOCK + r"conv_mid.\3.conv.\4"),
        (_BLOCK + r"layers\.(\d)\.norm\.(.*)", _TIMM_BLOCK + r"conv_mid.\3.bn.\4"),
        (_BLOCK + r"concat\.conv\.(.*)", _TIMM_BLOCK + r"conv_concat.conv.\3"),
        (_BLOCK + r"concat\.norm\.(.*)", _TIMM_BLOCK + r"conv_concat.bn.\3"),
        (_BLOCK + r"attention\.(.*)", _TIMM_BLOCK + r"attn.\3"),
    ),
    r"head\..*",
)


def _eva(trunk: str, pyramid: str, timm: bool) -> Rules:
    block = trunk + r"blocks.\1."
    names = {"gate": "w1", "value": "w2", "norm": "ffn_ln", "output": "w3"}
    bias = r"attn.\2_bias"
    if timm:
        names = {"gate": "fc1_g", "value": "fc1_x", "norm": "norm", "output": "fc2"}
        bias = r"attn.\2_proj.bias"
    rules = [
        (r"patch\.(.*)", trunk + r"patch_embed.proj.\1"),
        (r"position", trunk + "pos_embed"),
        (r"blocks\.(\d+)\.(norm[12]\..*)", block + r"\2"),
        (r"blocks\.(\d+)\.attention\.([qkv])\.weight", block + r"attn.\2_proj.weight"),
        (r"blocks\.(\d+)\.attention\.([qv])\.bias", block + bias),
        (r"blocks\.(\d+)\.attention\.(proj\..*)", block + r"attn.\2"),
    ]
    for ours, theirs in names.items():
        rules.append((rf"blocks\.(\d+)\.mlp\.{ours}\.(.*)", block + rf"mlp.{theirs}.\2"))
    if timm:
        return tuple(rules)
    # A convolution and its norm are two entries here and one there.
    for level, resize in enumerate(((0, 1, 3), (0,), (), (0,))):
        after = resize[-1] + 1 if resize else 0
        place = rf"{pyramid}simfp_{level + 2}."
        ours = rf"pyramid\.levels\.{level}\."
        rules += [(rf"{ours}{i}\.(.*)", rf"{place}{i}.\1") for i in resize]
        for i in range(2):
            rules.append((rf"{ours}{after + 2 * i}\.(.*)", rf"{place}{after + i}.\1"))
            rules.append((rf"{ours}{after + 2 * i + 1}\.(.*)", rf"{place}{after + i}.norm.\1"))
    return tuple(rules)


_EVA_EXTRA = r"(.*rope.*|cls_token|mask_token|norm\..*|fc_norm\..*|head\..*|lm_head\..*)"
_EVA_LAYOUTS = (
    Layout("EVA-02 detector", ("backbone.",), _eva("net.", "", False), r"net\." + _EVA_EXTRA),
    Layout(
        "EVA-02",
        ("img_backbone.", "backbone.", "visual.", ""),
        _eva("", "adapter.", False),
        _EVA_EXTRA,
    ),
    Layout("timm", ("",), _eva("", "", True), _EVA_EXTRA),
)


def layouts_of(config: BackboneConfig) -> tuple[Layout, ...]:
    """The layouts in which weights of such a backbone are published."""
    if isinstance(config, VoVNetConfig):
        return (_dd3d(config), _VOVNET_TIMM)
    if isinstance(config, EvaConfig):
        return _EVA_LAYOUTS
    if isinstance(config, ResNetConfig):
        return (_CAFFE,) if config.style == "caffe" else (_TORCHVISION,)
    return (Layout("timm", ("",), ((r"network\.(.*)", r"\1"),)),)
