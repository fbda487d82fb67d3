"""Training steps of the reduced v1 and v2 models against the published code, in float64.

Losses to 1e-8, gradient norms to 1e-8 of the total (single ones to 1e-6), assignments equal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from functools import cache
from types import ModuleType

import numpy as np
import pytest
import torch
from golden import SHARED
from test_golden_training import operator  # noqa: F401  the operator of every test here
from torch import Tensor

import s4d_core
from s4d_core.key_points import KeyPoints
from s4d_train.configs.recipes import get_recipe
from s4d_train.data.batch import Batch
from s4d_train.objectives.assignment import assign
from s4d_train.objectives.detection import LossConfig, Predictions
from s4d_train.objectives.draws import GeneratorDraws
from s4d_train.objectives.ground_truth import pack_ground_truth
from s4d_train.trainer.network import freeze_norms
from s4d_train.trainer.precision import Precision
from s4d_train.trainer.step import Targets, TemporalState, TrainingModule, forward_losses

FOLDER = SHARED / "golden" / "v1_v2"
pytestmark = pytest.mark.skipif(
    not (FOLDER / "golden_v1_train.npz").is_file(),
    reason=f"golden arrays not found in {FOLDER}; set S4D_SHARED to the folder that holds golden/",
)
V1, V2 = "sparse4dv1_r101_h4_640x1600", "sparse4dv2_r50_256x704"


@cache
def rules() -> ModuleType:
    """The numpy rules beside the arrays; the later file imports the earlier one by its name."""
    sys.path.insert(0, str(FOLDER))
    try:
        import rules12
    finally:
        sys.path.remove(str(FOLDER))
    return rules12


@cache
def arrays(file: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / file) as archive:
        return {name: archive[name] for name in archive.files}


def network(name: str, **changes: object) -> s4d_core.Sparse4D:
    """In float64 and training mode, without dropout."""
    config = s4d_core.reduced_config(s4d_core.get_config(name))
    config = config.replace(
        decoder=dataclasses.replace(config.decoder, dropout=0.0),
        aggregation=dataclasses.replace(config.aggregation, dropout=0.0, output_dropout=0.0),
        **changes,
    )
    anchor = rules().small_anchor()
    model = s4d_core.Sparse4D(config, torch.from_numpy(anchor))
    own = model.state_dict()
    names = s4d_core.reference_names(own, config)
    model.load_state_dict(
        {
            ours: torch.from_numpy(np.asarray(rules().rule_tensor(theirs, own[ours].shape, anchor)))
            for ours, theirs in names.items()
        }
    )
    for part in model.modules():  # constants of the configuration, here in float64
        if isinstance(part, KeyPoints):
            points = torch.tensor(config.aggregation.fixed_points, dtype=torch.float64)
            part.fix_scale.data = points
    return model.double().train()


def batch_of(
    z: dict[str, np.ndarray], frame: int, truth: str, depth: int
) -> tuple[Batch, list[Tensor], list[Tensor]]:
    """A batch with the ground truth under `in/<truth>`, and its boxes and labels."""
    boxes = [torch.from_numpy(z[f"in/{truth}gt_boxes_b{b}"]) for b in range(2)]
    labels = [torch.from_numpy(z[f"in/{truth}gt_labels_b{b}"]) for b in range(2)]
    focal = z.get("in/focal", np.ones((2, 6), np.float32))
    batch = Batch(
        images=torch.empty(2, 6, 0, 0, 3, dtype=torch.uint8),
        lidar2img=torch.from_numpy(z["in/lidar2img"]).double(),
        image_wh=torch.from_numpy(z["in/image_wh"]).double().expand(2, 6, 2),
        timestamp=torch.from_numpy(z["in/timestamp"][frame]),
        lidar2global=torch.from_numpy(z["in/lidar2global"][frame]),
        focal=torch.from_numpy(focal).double(),
        depth=tuple(torch.from_numpy(z[f"in/{truth}gt_depth{i}"]).double() for i in range(depth)),
        boxes=boxes,
        labels=labels,
        track_ids=[torch.arange(len(x)) for x in labels],
        tokens=["a", "b"],
        sequence_start=torch.zeros(2, dtype=torch.bool),
        photometric=torch.zeros(2, 6, 10),
        grid_mask=torch.zeros(2, 6),
    )
    return batch, boxes, labels


def step(
    model: s4d_core.Sparse4D,
    images: Tensor,
    batch: Batch,
    past: TemporalState,
    config: LossConfig,
) -> tuple[dict[str, Tensor], TemporalState, s4d_core.Sparse4DOutput, Targets]:
    truth = pack_ground_truth(batch.boxes, batch.labels, batch.track_ids, dtype=torch.float64)
    targets = Targets(truth, None)
    module = TrainingModule(model, Precision("cpu"))
    outputs: list[s4d_core.Sparse4DOutput] = []
    module.register_forward_hook(lambda *args: outputs.append(args[-1]))
    try:
        losses, past = forward_losses(
            module, images, batch, targets, past, config, GeneratorDraws(0)
        )
    finally:
        with contextlib.suppress(AttributeError):
            object.__delattr__(model, "pyramid")
    return losses, past, outputs[0], targets


def check_losses(losses: dict[str, Tensor], z: dict[str, np.ndarray], prefix: str) -> None:
    renamed = {
        k.replace("loss_box_", "loss_reg_").replace("loss_distance", "loss_depth"): v
        for k, v in losses.items()
    }
    wanted = {k.split("/")[-1]: v for k, v in z.items() if k.startswith(prefix + "/loss/")}
    assert renamed.keys() == wanted.keys()
    for key, value in renamed.items():
        np.testing.assert_allclose(value.item(), wanted[key], rtol=1e-8, err_msg=key)
    total = sum(losses.values()).item()
    np.testing.assert_allclose(total, z[prefix + "/loss_total"], rtol=1e-8)


def check_gradients(model: s4d_core.Sparse4D, z: dict[str, np.ndarray], prefix: str) -> None:
    parameters = {k: p for k, p in model.named_parameters() if p.grad is not None}
    names = s4d_core.reference_names(parameters, model.config)
    norms = {names[k]: p.grad.norm() for k, p in parameters.items()}
    total = float(z[prefix + "/grad_norm_total"])
    np.testing.assert_allclose(torch.stack(list(norms.values())).norm().item(), total, rtol=1e-8)
    start = prefix + "/grad_norm/"
    wanted = {k[len(start) :]: v for k, v in z.items() if k.startswith(start)}
    assert wanted
    for name, value in wanted.items():
        np.testing.assert_allclose(
            norms[name].item(), value, rtol=1e-8, atol=1e-13 * total, err_msg=name
        )
    gradients = {names[k]: p.grad.flatten() for k, p in parameters.items()}
    start = prefix + "/grad_head/"
    wanted = {k[len(start) :]: v for k, v in z.items() if k.startswith(start)}
    assert wanted
    for name, value in wanted.items():
        found = gradients[name][: value.size].numpy()
        np.testing.assert_allclose(found, value, rtol=1e-9, atol=1e-12, err_msg=name)
    assert not z[prefix + "/no_grad_params"].size


def check_statistics(model: s4d_core.Sparse4D, z: dict[str, np.ndarray], prefix: str) -> None:
    """Running statistics after the frame."""
    values = model.state_dict()
    names = s4d_core.reference_names(values, model.config)
    wanted = {k.split("/bn/")[1]: v for k, v in z.items() if k.startswith(prefix + "/bn/")}
    assert wanted.keys() <= set(names.values())
    for own, name in names.items():
        if name in wanted:
            found = values[own].flatten()[: wanted[name].size].numpy()
            np.testing.assert_allclose(found, wanted[name], rtol=1e-9, err_msg=name)


def check_predictions(
    output: s4d_core.Sparse4DOutput,
    z: dict[str, np.ndarray],
    prefix: str,
    config: LossConfig,
    targets: Targets,
) -> None:
    free = Predictions.stack(output.cls, output.box)
    truth = targets.truth
    matched = assign(free.cls.detach(), free.box.detach(), truth, config.cost, config.class_columns)
    for layer in range(3):
        for name, value in (("classification", output.cls), ("prediction", output.box)):
            expected = z.get(f"{prefix}/{name}/layer{layer}")
            if expected is None:
                continue
            single = expected.dtype == np.float32
            limit = 1e-6 + 1e-6 * np.abs(expected) if single else 1e-9
            assert (np.abs(value[layer].detach().numpy() - expected) <= limit).all()
        for b in range(2):
            rows, objects = z[f"{prefix}/assign/layer{layer}_b{b}"]
            want = dict(zip(objects.tolist(), rows.tolist(), strict=True))
            found = matched[layer, b, : truth.count[b]].tolist()
            assert found == [want[i] for i in range(truth.count[b])]


def test_two_steps_of_v2() -> None:
    z, config = arrays("golden_v2_train.npz"), get_recipe(V2).loss
    model, past = network(V2), TemporalState()
    for frame in range(2):
        model.zero_grad()
        batch, _, _ = batch_of(z, frame, f"f{frame}/", 3)
        images = torch.from_numpy(rules().image("train", frame, 2, 64, 176)).double()
        losses, past, output, targets = step(model, images, batch, past, config)
        sum(losses.values()).backward()
        prefix = f"v2_64/f{frame}"
        check_losses(losses, z, prefix)
        check_gradients(model, z, prefix)
        check_predictions(output, z, prefix, config, targets)
        check_statistics(model, z, prefix)


def test_one_step_of_v1() -> None:
    """Current frame with gradients, three past ones without; both published branches."""
    z, config = arrays("golden_v1_train.npz"), get_recipe(V1).loss
    model = network(V1, refine_interval="default")
    freeze_norms(model.backbone)
    batch, boxes, _ = batch_of(z, 0, "", 0)
    state = None
    for row in (3, 2, 1):  # the oldest first
        images = torch.from_numpy(rules().image("v1train", row, 2, 64, 176)).double()
        other, _, _ = batch_of(z, row, "", 0)
        seen = model.observe(images, other.lidar2img, other.timestamp, other.lidar2global)
        state = model.remember(seen, state)
    images = torch.from_numpy(rules().image("v1train", 0, 2, 64, 176)).double()
    levels = model.pyramid(images)
    model.pyramid = lambda _: levels  # type: ignore[method-assign]
    losses, _, output, targets = step(model, images, batch, TemporalState(state), config)
    check_losses(losses, z, "main_64")
    sum(losses.values()).backward(retain_graph=True)
    check_gradients(model, z, "main_64")
    check_predictions(output, z, "main_64", config, targets)
    confidence = output.depth_confidence
    assert confidence is not None
    for b in range(2):
        np.testing.assert_allclose(
            confidence[b, : len(boxes[b])].detach().numpy(),
            z[f"main_64/depth_confidence_b{b}"][0, ..., 0],
            rtol=1e-9,
        )
    original = network(V1, refine_interval="elapsed")
    original.pyramid = lambda _: [x.detach() for x in levels]  # type: ignore[method-assign]
    losses, _, output, targets = step(original, images, batch, TemporalState(state), config)
    check_losses(losses, z, "master_64")
    check_predictions(output, z, "master_64", config, targets)
