"""Published weights for the start of training: of a backbone, and of a detector's pyramid."""

from __future__ import annotations

import os
import warnings

from .backbones import LoadReport, ResNetConfig, load_weights
from .checkpoint import check_weights
from .convert import read_weights
from .model import Sparse4D
from .reference_names import reference_names

__all__ = ["load_backbone"]


def load_backbone(model: Sparse4D, src: str | os.PathLike[str], neck: bool = False) -> LoadReport:
    """Load published weights into a model's backbone.

    The code base is recognised by the names in the file; those that are known are, for

    - ResNet: torchvision's files, and detectors of MMDetection (nuImages Cascade Mask R-CNN;
      with style "caffe" FCOS3D);
    - VoVNet: DD3D (also as other repositories rename it), and timm;
    - EVA-02: its pre-training, its detectors (with their pyramid), and timm;
    - timm: files of the same timm model.

    Networks that take blue first get their first layer turned around, as this model takes red
    first. Weights that a detector adds (deformable offsets, a ViT's pyramid) may be missing and
    then keep their values.

    Args:
        model: in which the backbone is changed.
        src: a `.pth` file.
        neck: also take the feature pyramid of an MMDetection detector.

    Returns:
        what was loaded, what was not in the file, what was left out; `str` of it is one line.

    Raises:
        CheckpointError: not a weight file, of another network, or with missing or unknown names.
            Nothing is changed then.
    """
    found = read_weights(src)
    config = model.config
    pyramid = _pyramid(model, found, str(src)) if neck else None
    report = load_weights(model.backbone, config.backbone, found, str(src))
    caffe = isinstance(config.backbone, ResNetConfig) and config.backbone.style == "caffe"
    if caffe and config.image.std != (1.0, 1.0, 1.0):
        warnings.warn(
            f"{src}: caffe-style weights expect images less their mean, not divided; "
            f"image.std is {config.image.std}, expected (1.0, 1.0, 1.0)",
            stacklevel=2,
        )
    if pyramid is not None:
        model.neck.load_state_dict(pyramid)
    return report


def _pyramid(model: Sparse4D, found: dict, src: str) -> dict:
    own = {n: v for n, v in model.state_dict().items() if n.startswith("neck.")}
    names = reference_names(own, model.config)
    prefix = "img_neck." if any(n.startswith("img_neck.") for n in found) else "neck."
    theirs = {ours: name.replace("img_neck.", prefix) for ours, name in names.items()}
    # A detector may have more levels.
    part = {name: found[name] for name in theirs.values() if name in found}
    check_weights({theirs[n]: v for n, v in own.items()}, part, src, "the feature pyramid")
    return {ours.removeprefix("neck."): found[name] for ours, name in theirs.items()}
