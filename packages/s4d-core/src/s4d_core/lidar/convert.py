"""Weights of CenterPoint and BEVFusion checkpoints under the names and layout of this package.

Weight layouts: spconv 2.x ``(out, k0, k1, k2, in)``, as here; spconv 1.x ``(k0, k1, k2, in,
out)``. The layout is told by the shape; where both readings fit, the caller has to say it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from ..errors import CheckpointError
from .config import SparseEncoderConfig
from .encoder import build_encoder

__all__ = ["convert_encoder_state", "foreign_names"]

Source = Literal["centerpoint", "bevfusion"]
Layout = Literal["auto", "spconv1", "spconv2"]
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# Where the encoder lies in whole-model checkpoints.
_PREFIXES = ("", "backbone.", "encoders.lidar.backbone.", "pts_middle_encoder.", "module.backbone.")


def foreign_names(config: SparseEncoderConfig, source: Source) -> dict[str, str]:
    """Our module names to those of the source: CenterPoint's SpMiddleResNetFHD, or BEVFusion's
    SparseEncoder (whose strided convolutions end a stage instead of beginning the next)."""
    names: dict[str, str] = {"stem.conv": "conv_input.0", "stem.norm": "conv_input.1"}
    last = len(config.widths) - 1
    for stage in range(last + 1):
        ours = f"stages.{stage}"
        if source == "centerpoint":
            base = f"conv{stage + 1}"
            first = 3 if stage else 0
            down = (f"{base}.0", f"{base}.1")
        else:
            base = f"encoder_layers.encoder_layer{stage + 1}"
            first = 0
            ending = f"encoder_layers.encoder_layer{stage}.{config.blocks}"
            down = (f"{ending}.0", f"{ending}.1")
        if stage:
            names[f"{ours}.down.conv"], names[f"{ours}.down.norm"] = down
        for block in range(config.blocks):
            for part in (1, 2):
                theirs = f"{base}.{first + block}"
                names[f"{ours}.blocks.{block}.conv{part}"] = f"{theirs}.conv{part}"
                names[f"{ours}.blocks.{block}.norm{part}"] = f"{theirs}.bn{part}"
    end = "extra_conv" if source == "centerpoint" else "conv_out"
    names["out.conv"], names["out.norm"] = f"{end}.0", f"{end}.1"
    return names


def _find_prefix(state: Mapping[str, Tensor]) -> str:
    found = [p for p in _PREFIXES if f"{p}conv_input.0.weight" in state]
    if len(found) != 1:
        raise CheckpointError(
            "expected a CenterPoint or BEVFusion checkpoint with one conv_input.0.weight, found "
            f"{len(found)} under the known prefixes"
        )
    return found[0]


def _weight(tensor: Tensor, shape: tuple[int, ...], name: str, layout: Layout) -> Tensor:
    old = (*shape[1:4], shape[4], shape[0])
    fits_new, fits_old = tuple(tensor.shape) == shape, tuple(tensor.shape) == old
    if layout == "auto":
        if fits_new and fits_old:
            raise CheckpointError(
                f"{name}: the shape {shape} fits both weight layouts; name spconv1 or spconv2"
            )
        layout = "spconv1" if fits_old else "spconv2"
    if layout == "spconv1" and fits_old:
        return tensor.permute(4, 0, 1, 2, 3).contiguous()
    if layout == "spconv2" and fits_new:
        return tensor
    raise CheckpointError(
        f"{name}: expected a weight of shape {shape} (spconv 2) or {old} (spconv 1), got "
        f"{tuple(tensor.shape)}"
    )


def convert_encoder_state(
    state: Mapping[str, Tensor], config: SparseEncoderConfig, layout: Layout = "auto"
) -> dict[str, Tensor]:
    """A foreign state dict as one of ``SparseEncoder(config)``.

    Args:
        state: of the encoder alone or of the whole model; other entries are ignored.
        config: what the checkpoint was trained with. The index order decides nothing about the
            weights: an x y z checkpoint goes with an x y z config.
        layout: "auto" tells spconv 1.x from 2.x by the shapes.

    Raises:
        CheckpointError: an entry is missing, left over inside the encoder, or of another shape.
    """
    prefix = _find_prefix(state)
    source: Source = (
        "bevfusion" if any(f"{prefix}encoder_layers." in name for name in state) else "centerpoint"
    )
    wanted = build_encoder(config).state_dict()
    result: dict[str, Tensor] = {}
    used: set[str] = set()
    names = foreign_names(config, source)
    for ours, value in wanted.items():
        module, _, leaf = ours.rpartition(".")
        theirs = f"{prefix}{names[module]}.{leaf}"
        if theirs not in state:
            if leaf == "num_batches_tracked":  # absent in old files; only used without momentum
                result[ours] = value
                continue
            raise CheckpointError(f"the {source} checkpoint has no {theirs!r}")
        used.add(theirs)
        tensor = state[theirs]
        if value.dim() == 5:
            tensor = _weight(tensor, tuple(value.shape), theirs, layout)
        elif tensor.shape != value.shape:
            raise CheckpointError(
                f"{theirs}: expected shape {tuple(value.shape)}, got {tuple(tensor.shape)}"
            )
        result[ours] = tensor.detach().clone().to(value.dtype)
    roots = {name.split(".")[0] for name in names.values()}
    left = sorted(
        name
        for name in state
        if name.startswith(prefix) and name[len(prefix) :].split(".")[0] in roots - {""}
        and name not in used
    )  # fmt: skip
    if left:
        raise CheckpointError(
            f"the checkpoint has entries that the config {config.name!r} has no place for, "
            f"first {left[0]!r}"
        )
    return result
