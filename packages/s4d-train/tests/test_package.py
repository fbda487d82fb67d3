"""The package's public names, and what it does not load."""

from __future__ import annotations

import subprocess
import sys

import pytest

import s4d_train


def test_public_names() -> None:
    assert {name for name in s4d_train.__all__ if getattr(s4d_train, name, None) is None} == set()
    assert {*s4d_train.__all__} <= {*dir(s4d_train)}
    assert set(s4d_train._MODULES) == {*s4d_train.__all__} - {"__version__"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = s4d_train.nothing


def test_names_that_need_no_torch_do_not_load_it() -> None:
    code = (
        "import sys, s4d_train\n"
        "s4d_train.generate, s4d_train.convert, s4d_train.make_anchors, s4d_train.TrainError\n"
        "assert not {'torch', 'nuscenes'} & {*sys.modules}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
