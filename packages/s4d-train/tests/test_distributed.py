"""Two ranks on the CPU under torchrun: the losses of one rank, and a job that loses a rank."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
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


def start(folder: Path, config, *options: str) -> subprocess.Popen[bytes]:
    file = folder / "config.json"
    file.write_text(json.dumps(to_dict(config)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(port), *options]
    command += ["-m", "s4d_train", "fit", str(file), "--device", "cpu", "--no-progress"]
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


def process_of(rank: int, folder: Path) -> int | None:
    """The process of a rank of the job that reads `folder`'s settings."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().decode().split("\0")
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ours = str(folder / "config.json") in command and "torch.distributed.run" not in command
        if ours and f"RANK={rank}".encode() in environment:
            return int(entry.name)
    return None


@pytest.mark.timeout(300)
def test_a_job_that_loses_a_rank_starts_again_and_finishes(
    synth_index: DriveIndex, tmp_path: Path
) -> None:
    config = micro_config(tmp_path, Path(synth_index.folder), "run.save_every=2")
    job = start(tmp_path, config, "--max-restarts", "1", "--monitor-interval", "0.2")
    log, killed = tmp_path / "run" / "log.jsonl", False
    deadline = time.monotonic() + 150
    while job.poll() is None and time.monotonic() < deadline:
        if not killed and log.exists() and len(log.read_text().splitlines()) >= 3:
            victim = process_of(1, tmp_path)
            assert victim is not None
            os.kill(victim, signal.SIGKILL)
            killed = True
        time.sleep(0.02)
    job.terminate()
    assert job.wait() == 0 and killed
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, 9))
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
