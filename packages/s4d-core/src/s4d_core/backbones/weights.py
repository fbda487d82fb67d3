"""Published weights into a backbone: names matched, shapes checked, nothing left to chance."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import CheckpointError
from .base import Backbone
from .config import BackboneConfig, EvaConfig
from .layouts import Layout, layouts_of

__all__ = ["LoadReport", "load_weights", "match_weights"]

# May be absent from a file: counters that old files lack, and parts that a detector adds to a
# backbone trained for something else. They keep the values they have.
_OPTIONAL = re.compile(r".*num_batches_tracked|.*\.conv_offset\..*|pyramid\..*")
# The layer that sees the image; its input channels are colours.
_FIRST = {"resnet": "conv1.weight", "vovnet": "stem.0.conv.weight"}


@dataclass(frozen=True)
class LoadReport:
    """What a weight file gave.

    Attributes:
        layout: whose names it has.
        loaded: number of weights taken.
        fresh: our weights that the file does not have and that keep their values.
        left_out: (part, count) of the file's weights that are not of the backbone.
        reversed_colours: the file's network took blue first; ours takes red first.
    """

    layout: str
    loaded: int
    fresh: tuple[str, ...]
    left_out: tuple[tuple[str, int], ...]
    reversed_colours: bool

    def __str__(self) -> str:
        text = f"{self.loaded} weights in the names of {self.layout}"
        if self.reversed_colours:
            text += ", first layer turned from BGR to RGB"
        if self.fresh:
            text += f"; {len(self.fresh)} not in the file keep their values{_some(self.fresh)}"
        if self.left_out:
            text += "; left out: " + ", ".join(f"{part} ({n})" for part, n in self.left_out)
        return text


def load_weights(
    backbone: Backbone, config: BackboneConfig, found: Mapping[str, Tensor], source: str
) -> LoadReport:
    """Load `found` into `backbone`; on an error nothing is changed.

    Args, errors: as in `match_weights`; NaN or infinity is an error too.
    """
    own = backbone.state_dict()
    values, report = match_weights(own, config, found, source)
    for name, value in values.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{source}: the weight for {name} holds NaN or infinity")
    backbone.load_state_dict({**own, **values})
    return report


def match_weights(
    own: Mapping[str, Tensor], config: BackboneConfig, found: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], LoadReport]:
    """The weights of a published file under our names.

    Args:
        own: names and shapes of the backbone's weights.
        config: of the backbone.
        found: names and weights of the file; weights of other parts are left out.
        source: how messages name the file.

    Raises:
        CheckpointError: names of no known layout, missing or unexpected names, other shapes.
    """
    layout, prefix = _recognise(config, own, found, source)
    names = {ours: layout.rename(ours, prefix) for ours in own}
    values: dict[str, Tensor] = {}
    missing, fresh = [], []
    for ours, theirs in names.items():
        if theirs is not None and theirs in found:
            values[ours] = found[theirs]
        elif _OPTIONAL.fullmatch(ours):
            if not ours.endswith("num_batches_tracked"):
                fresh.append(ours)
        else:
            missing.append(theirs or ours)
    used = set(names.values())
    others = [name for name in found if name not in used]
    # With a prefix the backbone's names are known from those of other parts of the detector.
    inside = [name for name in others if name.startswith(prefix)]
    unexpected = [n for n in inside if not re.fullmatch(layout.extra, n.removeprefix(prefix))]
    target = f"a {config.kind} backbone in the names of {layout.name}"
    if missing or unexpected:
        raise CheckpointError(
            f"{source} does not fit {target}: {len(missing)} weights missing{_some(missing)}, "
            f"{len(unexpected)} unexpected{_some(unexpected)}"
        )
    if isinstance(config, EvaConfig):
        values["position"] = _position(values["position"], config, source)
    wrong = [
        f"{names[n]} {tuple(v.shape)} instead of {tuple(own[n].shape)}"
        for n, v in values.items()
        if v.shape != own[n].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{source} does not fit {target}: {len(wrong)} weights have another shape{_some(wrong)}"
        )
    first = _FIRST.get(config.kind)
    if layout.bgr and first is not None:
        values[first] = values[first].flip(1)
    parts = Counter(name.split(".")[0] for name in others)
    report = LoadReport(
        layout.name, len(values), tuple(fresh), tuple(sorted(parts.items())), layout.bgr
    )
    return values, report


def _recognise(
    config: BackboneConfig, own: Iterable[str], found: Mapping[str, Tensor], source: str
) -> tuple[Layout, str]:
    """The layout and prefix under which most of our names are found."""
    best: tuple[int, Layout, str] | None = None
    examples = []
    for layout in layouts_of(config):
        for prefix in layout.prefixes:
            count = sum(layout.rename(name, prefix) in found for name in own)
            if best is None or count > best[0]:
                best = (count, layout, prefix)
        first = next(iter(own))
        examples.append(f"{layout.rename(first, layout.prefixes[0])!r} ({layout.name})")
    if best is None or best[0] == 0:
        raise CheckpointError(
            f"{source} holds no weights of a {config.kind} backbone: expected names such as "
            f"{' or '.join(examples)}, found{_some(found)}"
        )
    return best[1], best[2]


def _position(value: Tensor, config: EvaConfig, source: str) -> Tensor:
    """A position embedding (1, T, C), class token or not, on our grid (1, C, rows, columns)."""
    if value.dim() != 3 or value.shape[2] != config.width:
        raise CheckpointError(
            f"{source}: position embedding {tuple(value.shape)}, expected (1, patches, "
            f"{config.width})"
        )
    rows, columns = config.position_grid
    for tokens in (0, 1):  # without and with one of the class token
        patches = value[:, tokens:]
        side = round(patches.shape[1] ** 0.5)
        for size in ((rows, columns), (side, side)):
            if patches.shape[1] == size[0] * size[1]:
                grid = patches.transpose(1, 2).unflatten(2, size)
                if size == (rows, columns):
                    return grid
                return interpolate(
                    grid.float(), (rows, columns), mode="bicubic", align_corners=False
                )
    raise CheckpointError(
        f"{source}: position embedding of {value.shape[1]} tokens is neither a square nor "
        f"{rows} x {columns}"
    )


def _some(names: Iterable[str], count: int = 3) -> str:
    """` (a, b, c, ...)`, or nothing for no names."""
    ordered = sorted(names)
    if not ordered:
        return ""
    return " (" + ", ".join(ordered[:count]) + (", ...)" if len(ordered) > count else ")")
