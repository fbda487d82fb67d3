"""Two ranks on the CPU under torchrun: the losses of one rank, and jobs that lose a rank."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from micro import micro_config

from s4d_train.configs.settings import to_dict
from s4d_train.data.index import DriveIndex
from s4d_train.errors import TrainError
from s4d_train.trainer.loop import fit
from s4d_train.trainer.meeting import common_word
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
# What each rank runs. With KILL, a file that is not there, rank 1 writes it before its fourth step
# and is killed.
FIT = """
import os, signal, sys
from s4d_train.cli import main
from s4d_train.trainer.trainer import Trainer

step = Trainer.train_step

def maybe_the_last(self, *arguments):
    first = KILL and not os.path.exists(KILL)
    if first and os.environ["RANK"] == "1" and self.step == 3:
        open(KILL, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *arguments)

Trainer.train_step = maybe_the_last
sys.exit(main(sys.argv[1:]))
"""


def start(
    folder: Path, config, *options: str, nodes: int = 1, kill: Path | None = None
) -> list[subprocess.Popen[bytes]]:
    """A job of two ranks: one agent of two, or as two nodes would, two agents of one."""
    file = folder / "config.json"
    file.write_text(json.dumps(to_dict(config)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(2 // nodes)]
    if nodes == 1:
        command += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    else:
        command += ["--nnodes", str(nodes), "--rdzv-backend", "c10d", "--rdzv-id", "fit"]
        command += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1"]
    script = folder / "fit.py"
    script.write_text(f"KILL = {kill and str(kill)!r}\n{FIT}")
    command += [*options, str(script), "fit", str(file), "--device", "cpu", "--no-progress"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return [subprocess.Popen([*command, "--resume"], env=environment) for _ in range(nodes)]


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
    (job,) = start(two, micro_config(two, index, *SAME, "run.batch=1"))
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
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_job_that_loses_a_rank_starts_again_and_finishes(
    nodes: int, synth_index: DriveIndex, tmp_path: Path
) -> None:
    config = micro_config(tmp_path, Path(synth_index.folder), "run.save_every=2")
    options = ("--max-restarts", "2", "--monitor-interval", "0.2")
    agents = start(tmp_path, config, *options, nodes=nodes, kill=tmp_path / "killed")
    assert [agent.wait() for agent in agents] == [0] * nodes
    assert (tmp_path / "killed").exists()
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in log]
    assert steps == list(range(1, 9))
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()


def test_ranks_of_one_attempt_share_a_word_that_no_other_attempt_has() -> None:
    """The store outlives attempts, one of which had no first rank."""
    store = torch.distributed.HashStore()
    short = timedelta(seconds=0.2)
    with pytest.raises(TrainError, match="rank 2 found no first rank"):
        common_word(store, 2, 3, short)
    with ThreadPoolExecutor(3) as pool:
        words = [
            set(pool.map(lambda rank: common_word(store, rank, 3), order))
            for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2))
        ]
    assert all(len(word) == 1 for word in words) and len(set.union(*words)) == 3
    with pytest.raises(TrainError, match=r"ranks \[1, 2\] of 3 have not come"):
        common_word(store, 0, 3, short)
