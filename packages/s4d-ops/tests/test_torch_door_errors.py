"""What the torch door refuses, and what its library may use of torch."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from cases import CASES

torch = pytest.importorskip("torch", reason="the torch door needs torch")

from torch_door import door, tensors  # noqa: E402

from s4d_ops import InvalidInputError, library_path  # noqa: E402


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.__setitem__(0, v[0][0]), "features"),
        (lambda v: v.__setitem__(0, v[0].int()), "float"),
        (lambda v: v.__setitem__(0, v[0].double()), "float64"),
        (lambda v: v.__setitem__(1, v[1].float()), "int32"),
        (lambda v: v.__setitem__(1, v[1].int()), "both"),
        (lambda v: v.__setitem__(2, v[2][:1]), "level_start_index"),
        (lambda v: v.__setitem__(3, v[3][:, :, :, :1]), "same B, A, P, N"),
        (lambda v: v.__setitem__(4, v[4][..., :0]), "groups"),
        (lambda v: v.__setitem__(4, v[4][:, :1]), "same B, A, P, N"),
    ],
)
def test_wrong_input_is_named(change, words):
    values = tensors(CASES["small"])
    change(values)
    with pytest.raises(InvalidInputError, match=words):
        door.deformable_aggregation(*values)
    if values[0].dim() == 3:
        with pytest.raises(RuntimeError):  # the core checks on its own
            torch.ops.s4d.deformable_aggregation(*values)


@pytest.mark.parametrize("bad", [10**6, -1])
def test_level_tables_outside_the_features_are_refused(bad):
    values = tensors(CASES["small"])
    values[2] = values[2] + bad
    with pytest.raises(RuntimeError, match="does not lie inside"):
        door.deformable_aggregation(*values)
    values = tensors(CASES["small"])
    values[1] = values[1] * 2**40
    with pytest.raises(RuntimeError, match="does not lie inside"):
        door.deformable_aggregation(*values)


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_only_stable_symbols_of_torch():
    """The promise of one binary for all versions: only the C interface of torch is used."""
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", library_path("torch")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    names = re.findall(r" [Uw] (\S+)", listing)
    assert any(name.startswith("aoti_torch_") for name in names)
    for name in names:
        # A C++ name of torch, ATen or c10 has its namespace's length before it.
        assert not re.match(r"_Z.*(3c10|2at|5torch)", name), name
        if "torch" in name:
            assert re.match(r"(aoti_torch|torch)_\w+$", name), name
