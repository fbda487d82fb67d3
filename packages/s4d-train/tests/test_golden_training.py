"""Two training steps of the reduced model against both published code bases, in float64.

Losses to 1e-8, gradient norms to 1e-6, assignments and denoising targets equal.
"""

from __future__ import annotations

import contextlib
import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from golden import FedDraws, arrays, ground_truth_lists, needs_golden, rules

import s4d_core
from s4d_train.data.batch import Batch
from s4d_train.objectives.assignment import assign
from s4d_train.objectives.denoising import make_denoising
from s4d_train.objectives.detection import LossConfig, Predictions
from s4d_train.objectives.ground_truth import pack_ground_truth
from s4d_train.trainer.precision import Precision
from s4d_train.trainer.step import Targets, TemporalState, TrainingModule, forward_losses

pytestmark = needs_golden
CONFIG = LossConfig()


def network(variant: str, z: dict[str, np.ndarray]) -> s4d_core.Sparse4D:
    config = s4d_core.reduced_config()
    config = config.replace(
        refine_yaw=variant.startswith("hz"),
        decoder=dataclasses.replace(config.decoder, dropout=0.0),
        aggregation=dataclasses.replace(config.aggregation, dropout=0.0),
    )
    model = s4d_core.build_model(config, anchors=z["in/anchor"])
    names = s4d_core.reference_names(model.state_dict(), config)
    own = model.state_dict()
    rule = rules().rule_tensor
    weights = {
        ours: torch.from_numpy(rule(theirs, own[ours].shape, z["in/anchor"]))
        for ours, theirs in names.items()
    }
    model.load_state_dict(weights)
    return model.double().train()


def batch_of(z: dict[str, np.ndarray], frame: int) -> tuple[torch.Tensor, Batch]:
    image = rules().image("train", frame, 2, 64, 176)
    boxes, labels, ids = ground_truth_lists(z, frame)
    batch = Batch(
        images=torch.empty(2, 6, 0, 0, 3, dtype=torch.uint8),
        lidar2img=torch.from_numpy(z["in/lidar2img"]).double(),
        image_wh=torch.from_numpy(z["in/image_wh"]).double().expand(2, 6, 2),
        timestamp=torch.from_numpy(z["in/timestamp"][frame]),
        lidar2global=torch.from_numpy(z["in/lidar2global"][frame]),
        focal=torch.from_numpy(z["in/focal"]).double(),
        depth=tuple(torch.from_numpy(z[f"in/f{frame}/gt_depth{i}"]).double() for i in range(3)),
        boxes=boxes,
        labels=labels,
        track_ids=ids,
        tokens=["a", "b"],
        sequence_start=torch.zeros(2, dtype=torch.bool),
        photometric=torch.zeros(2, 6, 10),
        grid_mask=torch.zeros(2, 6),
    )
    return torch.from_numpy(image).double(), batch


@cache
def run(variant: str) -> dict[str, object]:
    """Both frames: losses, gradients by published name, states, predictions."""
    z = arrays()
    model = network(variant, z)
    module = TrainingModule(model, Precision("cpu"))
    names = s4d_core.reference_names(dict(model.named_parameters()), model.config)
    past, result = TemporalState(), {}
    for frame in range(2):
        image, batch = batch_of(z, frame)
        truth = pack_ground_truth(batch.boxes, batch.labels, batch.track_ids, dtype=torch.float64)
        draws = FedDraws(z, frame)
        noisy = make_denoising(truth, CONFIG.denoising, CONFIG.cost, draws)
        model.zero_grad()
        outputs = []
        module.register_forward_hook(lambda *args, kept=outputs: kept.append(args[-1]))
        losses, past = forward_losses(
            module, image, batch, Targets(truth, noisy), past, CONFIG, draws
        )
        sum(losses.values()).backward()
        gradients = {names[name]: p.grad for name, p in model.named_parameters() if p.requires_grad}
        result[f"f{frame}"] = (losses, gradients, past, outputs[0], truth)
    return result


@pytest.fixture(autouse=True)
def operator():
    """The native operator where it is built, else the plain formula."""
    try:
        import s4d_ops.torch  # noqa: F401

        context: contextlib.AbstractContextManager = contextlib.nullcontext()
    except s4d_core.S4DError:
        context = s4d_core.use_reference_op()
    with context:
        yield


VARIANTS = pytest.mark.parametrize("variant", ["hz64", "se2e64"])
FRAMES = pytest.mark.parametrize("frame", [0, 1])


@VARIANTS
@FRAMES
def test_losses(variant: str, frame: int) -> None:
    z, (losses, *_) = arrays(), run(variant)[f"f{frame}"]
    prefix = f"{variant}/f{frame}/loss/"
    assert {prefix + key for key in losses} == {key for key in z if key.startswith(prefix)}
    for key, value in losses.items():
        np.testing.assert_allclose(value.item(), z[prefix + key], rtol=1e-8, err_msg=key)
    total = sum(losses.values()).item()
    np.testing.assert_allclose(total, z[f"{variant}/f{frame}/loss_total"], rtol=1e-8)


@VARIANTS
@FRAMES
def test_gradient_norms(variant: str, frame: int) -> None:
    z, (_, gradients, *_) = arrays(), run(variant)[f"f{frame}"]
    prefix = f"{variant}/f{frame}/grad_norm/"
    wanted = {key[len(prefix) :]: z[key] for key in z if key.startswith(prefix)}
    assert wanted and wanted.keys() <= gradients.keys()
    total = float(z[f"{variant}/f{frame}/grad_norm_total"])
    for name, norm in wanted.items():
        assert gradients[name] is not None, name
        # Relative, down to where a gradient is rounding noise against all the others.
        np.testing.assert_allclose(
            gradients[name].norm().item(), norm, rtol=1e-6, atol=1e-13 * total, err_msg=name
        )
    found = torch.stack([g.norm() for g in gradients.values()]).norm().item()
    np.testing.assert_allclose(found, total, rtol=1e-8)


@VARIANTS
@FRAMES
def test_assignments(variant: str, frame: int) -> None:
    z, (_, _, _, output, truth) = arrays(), run(variant)[f"f{frame}"]
    free = Predictions.stack(output.cls, output.box)
    matched = assign(free.cls.detach(), free.box.detach(), truth, CONFIG.cost, CONFIG.class_columns)
    for layer in range(3):
        for b in range(2):
            rows, objects = z[f"{variant}/f{frame}/assign/layer{layer}_b{b}"]
            want = dict(zip(objects.tolist(), rows.tolist(), strict=True))
            found = matched[layer, b, : truth.count[b]].tolist()
            assert found == [want[i] for i in range(truth.count[b])]


@VARIANTS
@FRAMES
def test_denoising_state(variant: str, frame: int) -> None:
    z, (_, _, past, output, _) = arrays(), run(variant)[f"f{frame}"]
    prefix = f"{variant}/f{frame}"
    state = past.denoising
    assert state is not None
    for name, value in (
        ("dn_cls_target", state.label),
        ("valid_mask", state.valid),
        ("dn_id_target", state.track_id),
    ):
        assert np.array_equal(value.numpy(), z[f"{prefix}/cached_dn/{name}"]), name
    np.testing.assert_allclose(state.anchor.numpy(), z[f"{prefix}/cached_dn/dn_anchor"], atol=1e-9)
    for layer in range(3):
        np.testing.assert_allclose(
            output.denoising.box[layer].detach().numpy(),
            z[f"{prefix}/dn_prediction/layer{layer}"],
            rtol=1e-6,
            atol=1e-5,
        )
