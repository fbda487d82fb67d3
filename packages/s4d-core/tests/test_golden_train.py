"""Two training frames with denoising queries: the model's side of the training comparison.

Train mode (batch statistics), no dropout, float64. Noise is the golden files' own; which rows are
matched to which object plays no part in the model, so no matching is done here.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import golden_arrays, golden_module
from golden_model import golden_model, variant_arrays
from torch import Tensor

import s4d_core

FILE = "golden_train.npz"
GROUPS = 5
NOISE = np.array([2.0] * 3 + [0.5] * 7)


def without_dropout(model: s4d_core.Sparse4D) -> s4d_core.Sparse4D:
    """A training-mode copy without any dropout."""
    config = model.config
    config = config.replace(
        decoder=replace(config.decoder, dropout=0.0),
        aggregation=replace(config.aggregation, dropout=0.0),
    )
    plain = s4d_core.build_model(config).to(torch.float64)
    plain.load_state_dict(model.state_dict())
    return plain.train()


def noisy_boxes(arrays: dict[str, np.ndarray], t: int, batch: int) -> Tensor:
    """(B, groups * 2 * objects, 11): per group small noise, then large noise."""
    objects = [arrays[f"in/f{t}/gt_boxes_b{b}"].astype(np.float64) for b in range(batch)]
    most = max(len(o) for o in objects)
    target = np.zeros((batch, most, 10))
    for b, box in enumerate(objects):
        yaw = box[:, 6:7]
        columns = [box[:, :3], np.log(box[:, 3:6]), np.sin(yaw), np.cos(yaw), box[:, 7:]]
        target[b, : len(box)] = np.concatenate(columns, axis=1)
    target = np.tile(target, (GROUPS, 1, 1))
    small, large, sign = (arrays[f"in/f{t}/rand_like{k}"].astype(np.float64) for k in range(3))
    near = target + (small * 2 - 1) * NOISE
    far = target + (large + 1) * np.where(sign > 0.5, 1, -1) * NOISE
    both = np.concatenate([near, far], axis=1).reshape(GROUPS, batch, 2 * most, 10)
    both = both.transpose(1, 0, 2, 3).reshape(batch, -1, 10)
    return torch.from_numpy(np.pad(both, ((0, 0), (0, 0), (0, 1))))


def kept_groups(output: s4d_core.DenoisingOutput, kept: Tensor) -> s4d_core.TemporalDenoising:
    def select(x: Tensor) -> Tensor:
        return x.detach().unflatten(1, (GROUPS, -1))[:, kept]

    return s4d_core.TemporalDenoising(select(output.feature), select(output.anchor))


@pytest.mark.parametrize("variant", ["hz64", "se2e64"])
def test_training_frames_equal_the_reference(variant: str, any_op: None) -> None:
    rules, arrays = golden_module("v3", "rules"), golden_arrays("v3", FILE)
    theirs = variant_arrays(FILE, variant)
    model = without_dropout(golden_model(FILE, variant, torch.float64))
    batch, (height, width) = rules.TRAIN["bs"], model.config.image.size
    kept = torch.from_numpy(np.flatnonzero(arrays["in/randperm"] < 3))
    state = temporal = None
    compared = 0
    for t in range(rules.TRAIN["frames"]):
        queries = s4d_core.DenoisingQueries(
            noisy_boxes(arrays, t, batch), num_groups=GROUPS, temporal=temporal
        )
        output = model(
            torch.from_numpy(rules.image("train", t, batch, height, width)).double(),
            torch.from_numpy(arrays["in/lidar2img"]).double(),
            torch.tensor([width, height], dtype=torch.float64).expand(batch, 6, 2),
            torch.from_numpy(arrays["in/timestamp"][t]),
            torch.from_numpy(arrays["in/lidar2global"][t]),
            state,
            denoising=queries,
            focal=torch.from_numpy(arrays["in/focal"]).double(),
        )
        noisy = output.denoising
        assert noisy is not None and output.depth is not None and len(output.depth) == 3
        for i in range(model.config.decoder.num_layers):
            for name, value in (
                ("classification", output.cls[i]),
                ("prediction", output.box[i]),
                ("quality", output.quality[i]),
                ("dn_classification", noisy.cls[i]),
                ("dn_prediction", noisy.box[i]),
            ):
                expected = theirs[f"f{t}/{name}/layer{i}"].astype(np.float64)
                difference = np.abs(value.detach().numpy() - expected)
                assert (difference <= 1e-6 + 1e-6 * np.abs(expected)).all(), (t, name, i)
                compared += 1
        state, temporal = output.state, kept_groups(noisy, kept)
        expected = theirs[f"f{t}/cached_dn/dn_anchor"]
        np.testing.assert_allclose(temporal.anchor.numpy(), expected, atol=1e-9, rtol=1e-9)
        np.testing.assert_array_equal(noisy.temporal_mask.numpy(), [t > 0] * batch)
    assert compared == 2 * 3 * 5
    for name, expected in theirs.items():
        if name.startswith("f1/bn/"):
            own = name.split("/")[-1].replace("img_backbone.", "")
            found = dict(model.backbone.named_buffers())[own][:16].numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
