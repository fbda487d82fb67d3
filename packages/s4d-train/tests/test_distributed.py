"""Two ranks on the CPU under torchrun: the losses of one rank, and a job that loses a rank."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from micro import micro_config

from s4d_train.configs.settings import to_dict
from s4d_train.data.index import DriveIndex
from s4d_train.trainer.loop import fit
from s4d_train.trainer.ranks import Ranks

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not sys.platform.startswith("linux"),
    reason="needs torch.distributed on Linux",
)
# What depends on the rank by design is off: batch statistics, dropout, noise, depth counts.
SAME = (
    "model.batch_norm=frozen",
    "model.dropout=0.0",
    "loss.denoising.groups=0",
    "loss.depth=0.0",
    "run.steps=6",
    "run.save_every=2",
    "data.sequence_parts=0",
)
# What each rank runs. With KILL, a file, rank 1 of the first attempt is killed before its fourth
# step and leaves the file.
FIT = """
import os, signal, sys
from s4d_train.cli import main
from s4d_train.trainer.trainer import Trainer

step = Trainer.train_step

def maybe_the_last(self, *arguments):
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if KILL and first and os.environ["RANK"] == "1" and self.step == 3:
        open(KILL, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *arguments)

Trainer.train_step = maybe_the_last
sys.exit(main(sys.argv[1:]))
"""


def start(folder: Path, config, *options: str, kill: Path | None = None) -> subprocess.Popen[bytes]:
    file = folder / "config.json"
    file.write_text(json.dumps(to_dict(config)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(port), *options]
    script = folder / "fit.py"
    script.write_text(f"KILL = {kill and str(kill)!r}\n{FIT}")
    command += [str(script), "fit", str(file), "--device", "cpu", "--no-progress"]
    return subprocess.Popen([*command, "--resume"], env={**os.environ, "OMP_NUM_THREADS": "1"})


def losses(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k.startswith(("loss", "grad"))} for row in rows]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.timeout(300)
def test_two_ranks_give_the_losses_of_one(synth_index: DriveIndex, tmp_path: Path) -> None:
    index = Path(synth_index.folder)
    two, one = tmp_path / "two", tmp_path / "one"
    two.mkdir()
    one.mkdir()
    job = start(two, micro_config(two, index, *SAME, "run.batch=1"))
    alone = Ranks(0, 1, torch.device("cpu"))
    fit(micro_config(one, index, *SAME, "run.batch=2"), alone, show=False)
    assert job.wait() == 0
    mine, theirs = losses(one / "run"), losses(two / "run")
    assert len(mine) == len(theirs) == 6
    for a, b in zip(mine, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert b[name] == pytest.approx(a[name], rel=2e-3, abs=1e-4), name


@pytest.mark.timeout(300)
def test_a_job_that_loses_a_rank_starts_again_and_finishes(
    synth_index: DriveIndex, tmp_path: Path
) -> None:
    config = micro_config(tmp_path, Path(synth_index.folder), "run.save_every=2")
    options = ("--max-restarts", "1", "--monitor-interval", "0.2")
    job = start(tmp_path, config, *options, kill=tmp_path / "killed")
    assert job.wait() == 0
    assert (tmp_path / "killed").exists()
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in log]
    assert steps == list(range(1, 9))
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
