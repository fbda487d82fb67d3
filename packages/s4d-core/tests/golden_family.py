"""Roll-outs of the reduced v1 and v2 models with the weights of the golden rule."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from conftest import golden, golden_arrays, golden_module
from torch import Tensor

import s4d_core
from s4d_core.decode import rank
from s4d_core.key_points import KeyPoints

FOLDER = "v1_v2"
DISCRETE = ("update_index", "cached_index", "temp_mask", "decoded/labels_3d", "decoded/index")


@cache
def rules() -> object:
    """rules12.py, which imports rules.py beside it."""
    import sys

    folder = str(golden(FOLDER))
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return golden_module(FOLDER, "rules12")


def family_config(name: str, **changes: object) -> s4d_core.Sparse4DConfig:
    """The small configuration of the golden files."""
    return s4d_core.reduced_config(s4d_core.get_config(name)).replace(**changes)


@cache
def weights(name: str) -> dict[str, Tensor]:
    """Weights by the golden rule, under our names."""
    config = family_config(name)
    anchor = rules().small_anchor()
    with torch.device("meta"):
        model = s4d_core.Sparse4D(config, torch.zeros(config.num_anchors, 11))
    shapes = model.state_dict()
    names = s4d_core.reference_names(shapes, config)
    return {
        ours: torch.from_numpy(np.asarray(rules().rule_tensor(theirs, shapes[ours].shape, anchor)))
        for ours, theirs in names.items()
    }


def family_model(name: str, config: s4d_core.Sparse4DConfig | None = None) -> s4d_core.Sparse4D:
    """The model in float64, training mode."""
    config = config or family_config(name)
    model = s4d_core.Sparse4D(config, torch.zeros(config.num_anchors, 11))
    model.load_state_dict(weights(name))
    model = model.double()
    for part in model.modules():  # constants of the configuration, here in float64
        if isinstance(part, KeyPoints):
            points = torch.tensor(config.aggregation.fixed_points, dtype=torch.float64)
            part.fix_scale.data = points
    return model


@cache
def pyramid(name: str, file: str, tag: str, t: int) -> list[Tensor]:
    """Pyramid levels of one golden frame; models with the same backbone and neck share them."""
    model = family_model(name).eval()
    with torch.no_grad():
        return model.pyramid(inputs(file, tag, t)["images"])


def inputs(file: str, tag: str, t: int) -> dict[str, Tensor]:
    """Arguments of `forward` for one frame of a golden file."""
    arrays = golden_arrays(FOLDER, file)
    batch, height, width = rules().BS, rules().H, rules().W
    return {
        "images": torch.from_numpy(rules().image(tag, t, batch, height, width)).double(),
        "lidar2img": torch.from_numpy(arrays["in/lidar2img"]).double(),
        "image_wh": torch.tensor([width, height]).double().expand(batch, 6, 2),
        "timestamp": torch.from_numpy(arrays["in/timestamp"][t]),
        "lidar2global": torch.from_numpy(arrays["in/lidar2global"][t]),
    }


def variant(file: str, prefix: str) -> dict[str, np.ndarray]:
    """The golden arrays of one variant, without the prefix."""
    arrays = golden_arrays(FOLDER, file)
    return {k[len(prefix) + 1 :]: v for k, v in arrays.items() if k.startswith(prefix + "/")}


@torch.no_grad()
def roll_out(
    model: s4d_core.Sparse4D, file: str, tag: str, frames: int, features_of: str | None = None
) -> dict[str, np.ndarray]:
    """All frames, named as the golden arrays are.

    `features_of` names a model with the same backbone and neck, whose features are taken.
    """
    state, result = None, {}
    for t in range(frames):
        if features_of is not None:
            levels = pyramid(features_of, file, tag, t)
            model.pyramid = lambda _, levels=levels: levels  # type: ignore[method-assign]
        output = model(**inputs(file, tag, t), state=state, every_layer=True)
        found = frame_arrays(output, model.config)
        if state is None:
            found.pop("temp_anchor_projected", None)
        state = output.state
        result.update({f"f{t}/{k}": v.numpy() for k, v in found.items()})
    return result


def frame_arrays(
    output: s4d_core.Sparse4DOutput, config: s4d_core.Sparse4DConfig
) -> dict[str, Tensor]:
    trace, bank = output.trace, output.state.bank
    found = {"time_interval": trace.time_interval}
    if config.num_temporal:
        assert trace.update_index is not None
        found |= {
            "temp_mask": trace.temporal_mask,
            "update_index": trace.update_index,
            "temp_confidence": trace.confidence,
            "cached_index": trace.cached_index,
            "cached_confidence": bank.confidence,
            "cached_anchor": bank.anchor,
            "cached_feature": bank.feature,
            "temp_anchor_projected": trace.projected_anchor,
        }
    for i, box in enumerate(output.box):
        cls = output.cls[i]
        assert cls is not None and output.quality[i] is None
        found |= {f"layer{i}/box": box, f"layer{i}/cls": cls}
    detections = s4d_core.decode(output, config)
    for name, key in (("boxes", "boxes_3d"), ("scores", "scores_3d"), ("labels", "labels_3d")):
        found[f"decoded/{key}"] = torch.stack([getattr(d, name) for d in detections])
    found["decoded/index"] = rank(output.cls[-1], None, config).rows
    return found


def assert_equal(
    mine: dict[str, np.ndarray],
    theirs: dict[str, np.ndarray],
    inner: Callable[[str], bool],
    limit: float = 1e-9,
) -> int:
    """Every golden array that is not inside the network: discrete equal, others to `limit`.

    Arrays that the files hold in float32 are compared at its resolution. Returns their number.
    """
    compared = 0
    for name, value in theirs.items():
        kind = name.split("/", 1)[1]
        if inner(kind):
            continue
        compared += 1
        if kind in DISCRETE:
            np.testing.assert_array_equal(mine[name], value, err_msg=name)
        else:
            rounded = 0 if value.dtype == np.float64 else 6e-8 * np.abs(value)
            difference = np.abs(mine[name] - value.astype(np.float64))
            assert (difference <= limit + rounded).all(), (name, difference.max())
    return compared
