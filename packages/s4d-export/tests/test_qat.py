"""Quantisation-aware fine-tuning: the numbers of the quantised graph, and weights that learn."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from s4d_export import QuantizationError
from s4d_export.graph.session import GraphSession
from s4d_export.graph.surgery import extract, feature_tensors
from s4d_export.graph.tracing import trace
from s4d_export.inspection import load_graph
from s4d_export.int8.calibration import calibrate
from s4d_export.int8.images import random_images
from s4d_export.int8.qat import FakeQuantConv2d, fake_quantize, prepare_qat, remove_qat
from s4d_export.int8.quantize import find_points, to_int8


@pytest.fixture(scope="module")
def setting(exported):
    """A model, its graph, where it is quantised, ranges, and one frame."""
    model = exported.model
    graph, _ = load_graph(exported.artifacts["plugin"])
    points = find_points(graph)
    images = next(iter(random_images(model.config, 1)))
    ranges = calibrate(graph, [p.tensor for p in points], model.config, [images])
    return model, graph, points, ranges, images


class Pyramid(torch.nn.Module):
    """The quantised part of a model: images to pyramid levels."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        pixels = images.to(torch.float32)[None]
        return tuple(self.model.pyramid(self.model.normalise(pixels)))


def pyramid(model, images):
    return model.pyramid(model.normalise(torch.from_numpy(images)[None]))


def test_rounding_and_its_gradient():
    x = torch.tensor([-3.0, -1.0, 0.004, 0.2, 1.0, 1.5], requires_grad=True)
    y = fake_quantize(x, torch.tensor(1.0))
    assert torch.allclose(y * 127, torch.tensor([-127.0, -127, 1, 25, 127, 127]), atol=1e-4)
    y.sum().backward()
    assert x.grad.tolist()[2:4] == [1, 1] and x.grad[0] == x.grad[5] == 0
    assert fake_quantize(x.half(), torch.tensor(1.0)).dtype == torch.float16
    assert fake_quantize(x, torch.tensor(0.0)).abs().max() < 1e-20


@torch.no_grad()
def test_the_prepared_model_computes_as_the_quantised_graph(setting):
    model, graph, points, ranges, images = setting
    prepared = copy.deepcopy(model)
    keys = list(prepared.state_dict())
    changed = prepare_qat(prepared, points, ranges)
    assert sum(isinstance(m, FakeQuantConv2d) for m in prepared.modules()) == 20
    assert "backbone.layer1.0" in changed and list(prepared.state_dict()) == keys
    outputs = feature_tensors(graph)
    quantised = extract(to_int8(graph, ranges), outputs)
    expected = GraphSession(quantised, optimise=False).run({"images": images})
    exact = pyramid(model, images)
    for name, level, plain in zip(outputs, pyramid(prepared, images), exact, strict=True):
        got, truth = level.numpy(), expected[name]
        apart = np.linalg.norm(got - truth)
        rounding = np.linalg.norm(truth - plain.numpy())
        # Values within float32 rounding of a step may fall to either side; nothing else differs.
        assert apart < 0.1 * rounding and apart < 2e-3 * np.linalg.norm(truth), name
    remove_qat(prepared)
    for level, plain in zip(pyramid(prepared, images), exact, strict=True):
        assert torch.equal(level, plain)
    assert not any(isinstance(m, FakeQuantConv2d) for m in prepared.modules())


def test_fine_tuning_brings_the_features_back(setting):
    """A few steps against the float32 features, through the deployed graph at the end."""
    model, _, points, ranges, images = setting
    with torch.no_grad():
        target = pyramid(model, images)
    student = copy.deepcopy(model)
    with torch.no_grad():  # a start where rounding hurts: one channel spoils a shared scale
        for conv in (student.backbone.layer2[0].conv1, student.neck.output[0]):
            conv.weight += 0.02 * torch.randn(conv.weight.shape, generator=torch.manual_seed(0))
    prepare_qat(student, points, ranges)
    weights = [p for n, p in student.named_parameters() if n.startswith(("backbone", "neck"))]
    optimiser = torch.optim.Adam(weights, lr=1e-3)
    losses = []
    for _ in range(8):
        loss = sum(
            torch.nn.functional.mse_loss(a, b)
            for a, b in zip(pyramid(student, images), target, strict=True)
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0] and all(np.isfinite(losses))
    assert all(p.grad is not None for p in weights if p.requires_grad and p.dim() == 4)
    remove_qat(student)
    levels = [f"level{i}" for i in range(4)]
    tuned = trace(Pyramid(student), {"images": torch.from_numpy(images)}, levels, "pyramid")
    tensors = [p.tensor for p in find_points(tuned)]
    again = calibrate(tuned, tensors, model.config, [images])
    got = GraphSession(to_int8(tuned, again)).run({"images": images})
    error = sum(
        float(np.square(got[name] - level.numpy()).mean())
        for name, level in zip(levels, target, strict=True)
    )
    assert error < 0.7 * losses[0]


def test_refusals(setting):
    model, _, points, ranges, _ = setting
    prepared = copy.deepcopy(model)
    prepare_qat(prepared, points, ranges)
    with pytest.raises(QuantizationError, match="prepared already"):
        prepare_qat(prepared, points, ranges)
    with pytest.raises(QuantizationError, match="no module"):
        prepare_qat(torch.nn.Linear(2, 2), points, ranges)
    with pytest.raises(QuantizationError, match="no range"):
        prepare_qat(copy.deepcopy(model), points, type(ranges)({}, "mse", 99.9, 1, "", ""))
