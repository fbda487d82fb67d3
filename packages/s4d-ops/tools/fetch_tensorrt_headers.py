#!/usr/bin/env python3
"""Puts TensorRT 10 headers where the build looks for them: build/tensorrt-headers/10.

    python tools/fetch_tensorrt_headers.py [--target FOLDER]

TensorRT's own Python packages carry no headers. The wheel `kernel-lens` 2.0.1 has those of
TensorRT 10.14; it is downloaded with pip (not installed) and its folder of headers unpacked. For
another version set S4D_TENSORRT_INCLUDE_DIR to the `include` folder of a TensorRT installation or
of NVIDIA's open-source TensorRT repository.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

PACKAGE = "kernel-lens==2.0.1"
PREFIX = "kernel_lens/include/tensorrt/"
DEFAULT = Path(__file__).resolve().parent.parent / "build" / "tensorrt-headers" / "10"


def fetch(target: Path) -> None:
    """Downloads the wheel and writes its headers to `target`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", folder, PACKAGE], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith(PREFIX)]
            headers = [name for name in names if name.endswith(".h")]
            if PREFIX + "NvInferRuntime.h" not in headers:
                sys.exit(f"error: {PACKAGE} holds no TensorRT headers under {PREFIX}")
            target.mkdir(parents=True, exist_ok=True)
            for name in headers:
                (target / PurePosixPath(name).name).write_bytes(archive.read(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, default=DEFAULT)
    target = parser.parse_args().target
    if not (target / "NvInferRuntime.h").is_file():
        fetch(target)
    print(target)


if __name__ == "__main__":
    main()
