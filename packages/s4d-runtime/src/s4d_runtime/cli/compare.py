"""``s4d-run compare``: how far are two tensor files apart, and is that allowed?"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", help="a .tensor or .npy file; FEATURES:INDICES sorts by indices")
    parser.add_argument("second", help="the reference, likewise")
    parser.add_argument("--max-abs", type=float, help="largest allowed absolute difference")
    parser.add_argument(
        "--relative", type=float, help="largest allowed |first - second| / |second|"
    )
    parser.add_argument("--cosine", type=float, help="smallest allowed cosine")


def run(args: argparse.Namespace) -> int:
    from ..lidar.compare import compare

    result = compare(_load(args.first), _load(args.second))
    print(result.table())
    failures = result.failures(args.max_abs, args.relative, args.cosine)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _load(name: str) -> NDArray[Any]:
    import numpy as np

    from ..errors import S4DError

    # A colon separates two files, unless the whole is the name of one (or a drive letter).
    features, colon, indices = name.rpartition(":")
    if not colon or len(features) < 2:
        return _read(name)
    rows, sites = _read(features), _read(indices)
    if sites.ndim != 2 or rows.ndim != 2 or len(sites) != len(rows):
        raise S4DError(f"expected one index row per feature row, got {rows.shape}, {sites.shape}")
    order = np.lexsort(sites.T[::-1])
    return np.concatenate([sites[order].astype(np.float64), rows[order].astype(np.float64)], 1)


def _read(name: str) -> NDArray[Any]:
    import numpy as np

    from ..errors import S4DError
    from ..lidar.tensor_file import read_tensor

    if not name.endswith(".npy"):
        return read_tensor(name)
    try:
        array: NDArray[Any] = np.load(name, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise S4DError(f"cannot read {name}: {error}") from None
    return array
