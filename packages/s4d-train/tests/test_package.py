"""The package's public names, what it does not load, and its processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import s4d_train
from s4d_train.errors import TrainError
from s4d_train.processes import in_processes


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


def test_a_process_that_dies_is_an_error_and_not_a_wait() -> None:
    with pytest.raises(TrainError, match="a worker process ended before its work was done"):
        list(in_processes(os._exit, [3], 2))
    assert sorted(in_processes(abs, [-3, 2, -1], 2)) == [1, 2, 3]
    assert list(in_processes(abs, [-3, 2], 1)) == [3, 2]
