"""Small models with weights that make all of the graph matter."""

from __future__ import annotations

import zlib

import numpy as np
import torch

from s4d_core import Sparse4D, Sparse4DConfig, build_model


def seeded_model(name_or_config: str | Sparse4DConfig, seed: int = 0) -> Sparse4D:
    """A model whose every weight is drawn from its own name, spread as in a trained network.

    Fresh weights are no test: sampling weights and instance features start at zero, scores are
    all alike. Here scores spread, boxes stay metres, and nothing depends on the order of draws.
    Matrices have gain 0.6: with gain 1 a rounding error grows a hundredfold from frame to frame,
    because a point that crosses an image border counts or does not.
    """
    model = build_model(name_or_config).eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if not value.is_floating_point() or key.endswith(("fix_scale", "bank.anchor")):
                continue
            shape = tuple(value.shape)
            rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
            draw = rng.standard_normal(shape)
            if key.endswith("running_mean"):
                new = 0.1 * draw
            elif key.endswith("running_var"):
                new = 1 + 0.2 * np.abs(draw)
            elif key.endswith("box_scale.scale"):
                new = 0.1 + 0.02 * draw
            elif key.endswith("bank.feature"):
                new = 0.5 * draw
            elif len(shape) == 4:
                new = draw * np.sqrt(2 / np.prod(shape[1:]))
            elif len(shape) == 2:
                new = 0.6 * draw / np.sqrt(shape[1])
            elif key.endswith("cls_output.bias"):
                new = -3.0 + 0.1 * draw
            elif "depth" in key:
                continue
            elif key.endswith("weight"):
                last_norm = key.endswith(("bn2.weight", "bn3.weight"))
                new = (0.3 if last_norm else 1.0) * (1 + 0.1 * draw)
            else:
                new = 0.1 * draw
            value.copy_(torch.from_numpy(np.asarray(new, dtype=np.float32)))
    return model
