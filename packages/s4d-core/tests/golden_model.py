"""The reduced model of the golden files, with its rule weights."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from conftest import golden_arrays, golden_module

import s4d_core


@cache
def _weights(file: str) -> dict[str, torch.Tensor]:
    """Weights by the golden rule, under our names."""
    rules, anchor = golden_module("v3", "rules"), golden_arrays("v3", file)["in/anchor"]
    model = s4d_core.build_model(s4d_core.reduced_config(), anchors=anchor)
    names = s4d_core.reference_names(model.state_dict(), model.config)
    return {
        name: torch.from_numpy(np.asarray(rules.rule_tensor(names[name], value.shape, anchor)))
        for name, value in model.state_dict().items()
    }


def golden_model(file: str, variant: str, dtype: torch.dtype) -> s4d_core.Sparse4D:
    """The model of one golden file; `variant` "hz..." or "se2e..." sets what yaw output means."""
    config = s4d_core.reduced_config().replace(refine_yaw=variant.startswith("hz"))
    model = s4d_core.build_model(config)
    model.load_state_dict(_weights(file))
    return model.to(dtype)


def variant_arrays(file: str, variant: str) -> dict[str, np.ndarray]:
    """The golden arrays of one variant, without the prefix."""
    prefix = variant + "/"
    arrays = golden_arrays("v3", file)
    return {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
