"""Losses of the last decoder in runs of `s4d-train fit`, as a picture.

    python benchmarks/curves.py --out curves.png first=run1/log.jsonl,16 second=run2/log.jsonl,32

Each run is NAME=LOG,SAMPLES_PER_STEP, over all devices. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

PANELS = (
    ("loss_cls", "focal loss of classes"),
    ("loss_box", "L1 loss of boxes"),
    ("loss_cns", "centerness loss"),
    ("loss_yns", "yawness loss"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=LOG,SAMPLES_PER_STEP")
    parser.add_argument("--out", required=True, help="picture to write")
    args = parser.parse_args()
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(11, 2.9), layout="constrained")
    for run in args.runs:
        name, _, rest = run.partition("=")
        log, _, batch = rest.rpartition(",")
        rows = [json.loads(line) for line in Path(log).read_text().splitlines()]
        samples = [row["step"] * int(batch) / 1000 for row in rows]
        for axis, (key, _) in zip(axes, PANELS, strict=True):
            last = max(k for k in rows[0] if k.rpartition("_")[0] == key)
            axis.plot(samples, [row[last] for row in rows], label=name, linewidth=1.2)
    for axis, (_, title) in zip(axes, PANELS, strict=True):
        axis.set(xlabel="thousand samples", ylabel=title)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(args.out, dpi=100)


if __name__ == "__main__":
    main()
