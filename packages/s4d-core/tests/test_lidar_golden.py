"""The encoder against the golden small network: layers, gradients, folding."""

import numpy as np
import pytest
import torch
from lidar_golden import SMALL, golden, golden_encoder, golden_rules

from s4d_core.lidar import SparseTensor, fold_batchnorm
from s4d_core.lidar.convert import foreign_names
from s4d_core.lidar.encoder import ConvBlock, ResidualBlock

OURS = {theirs: ours for ours, theirs in foreign_names(SMALL, "centerpoint").items()}


def run(encoder, data, dtype):
    """Dense output, sparse outputs, input features, and every block's output by golden name."""
    features = torch.from_numpy(data["in/feat"]).to(dtype).requires_grad_()
    seen: dict[str, SparseTensor] = {}
    theirs = foreign_names(SMALL, "centerpoint")
    handles = []
    for name, module in encoder.named_modules():
        if isinstance(module, ConvBlock):
            label = theirs[f"{name}.conv"]
        elif isinstance(module, ResidualBlock):
            label = theirs[f"{name}.conv2"][: -len(".conv2")]
        else:
            continue
        handles.append(
            module.register_forward_hook(
                lambda _module, _inputs, out, label=label: seen.__setitem__(label, out)
            )
        )
    x = SparseTensor(features, torch.from_numpy(data["in/idx"]), SMALL.grid_shape, 2)
    dense = encoder.to_bev(encoder.encode(x)[-1])
    for handle in handles:
        handle.remove()
    return dense, features, seen


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_layers(dtype, limit):
    data, rules = golden("golden_scn_small.npz"), golden_rules()
    dense, _, seen = run(golden_encoder(SMALL, dtype), data, dtype)
    stages = {"conv_input.0": "stage1", "extra_conv.0": "extra"}
    compared = 0
    for label, x in seen.items():
        stage = stages.get(label, f"stage{label[4]}")
        order = rules.sort_rows(x.indices.numpy())
        np.testing.assert_array_equal(x.indices.numpy()[order], data[f"idx/{stage}"])
        assert x.grid_shape == tuple(data[f"shape/{stage}"])
        want = data[f"feat/{label}"]
        got = x.features.detach().numpy()[order]
        rounding = 1e-7 if want.dtype == np.float32 else 0.0
        assert np.abs(got - want).max() <= (limit + rounding) * max(np.abs(want).max(), 1.0), label
        compared += 1
    assert compared == 13
    np.testing.assert_allclose(dense.detach().numpy(), data["dense"], atol=5e-6, rtol=0)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_gradients(dtype, limit):
    data, rules = golden("golden_scn_small.npz"), golden_rules()
    encoder = golden_encoder(SMALL, dtype)
    dense, features, _ = run(encoder, data, dtype)
    weights = torch.from_numpy(rules.rng("small/loss").standard_normal(tuple(dense.shape)))
    loss = (weights.to(dtype) * dense).sum()
    np.testing.assert_allclose(loss.item(), data["loss"], rtol=1e-5 if limit > 1e-9 else 1e-12)
    loss.backward()
    parameters = dict(encoder.named_parameters())

    def check(got, want):
        assert np.linalg.norm(got - want) <= limit * np.linalg.norm(want)

    assert features.grad is not None
    check(features.grad.numpy(), data["grad/in"])
    names = [name for name in data.files if name.startswith("grad/") and name != "grad/in"]
    assert len(names) == 8 or len(names) == 9
    for name in names:
        module, _, leaf = name.removeprefix("grad/").rpartition(".")
        check(parameters[f"{OURS[module]}.{leaf}"].grad.numpy(), data[name])


def test_folding():
    data, rules = golden("golden_scn_small.npz"), golden_rules()
    encoder = golden_encoder(SMALL, torch.float64)
    folded = fold_batchnorm(encoder)
    dense, features, _ = run(folded, data, torch.float64)
    want, plain, _ = run(encoder, data, torch.float64)
    torch.testing.assert_close(dense, want, rtol=0, atol=1e-13)
    weights = torch.from_numpy(rules.rng("small/loss").standard_normal(tuple(dense.shape)))
    (weights * dense).sum().backward()
    (weights * want).sum().backward()
    torch.testing.assert_close(features.grad, plain.grad, rtol=0, atol=1e-12)
    modules = dict(folded.named_modules())
    names = {
        n.split("/")[1] for n in data.files if n.startswith("folded/") and n.endswith("/weight")
    }
    assert len(names) == 4
    for name in names:
        conv = modules[OURS[name]]
        for leaf, value in (("weight", conv.weight), ("bias", conv.bias)):
            expected = data[f"folded/{name}/{leaf}"]
            np.testing.assert_allclose(value.detach().numpy(), expected, rtol=0, atol=1e-12)
            gradient = data[f"folded/{name}/grad_{leaf}"]
            np.testing.assert_allclose(value.grad.numpy(), gradient, rtol=1e-11, atol=1e-11)
    again = fold_batchnorm(folded)
    for a, b in zip(folded.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
