"""Every job of the monorepo, each in an environment of its own.

`nox -s demo` runs the main job, `nox -s tests` every test; `nox -l` lists the rest.
A package is built into a wheel once per state of its sources (build/wheels) and the sessions
install that wheel, so what is tested is what a user would get.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import nox

ROOT = Path(__file__).parent
CONSTRAINTS = ROOT / "tools" / "constraints.txt"
WHEELS = ROOT / "build" / "wheels"
PACKAGES = ("ops", "core", "train", "export", "runtime")
# What of ours each package stands on, itself last, with the extras its tests need.
STACK = {
    "ops": ("ops[torch,test]",),
    "core": ("ops[torch]", "core[test]"),
    "train": ("ops[torch]", "core", "runtime", "train[test]"),
    "export": ("ops[torch]", "core", "runtime", "export[test]"),
    "runtime": ("ops", "runtime[test]"),
}
EVERYTHING = ("ops[torch]", "core", "runtime[test]", "train[test]", "export[test]")
# A test that hangs (a lost worker, a dead lock) fails with a trace of every thread.
PYTEST = ("pytest", "-q", "--timeout", "900", "-m", "not gpu")

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["tests"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_external_run = True


def native_build_settings() -> dict[str, str]:
    """Switches of the s4d-ops build: the torch door is demanded, CUDA is built where nvcc is."""
    settings = {"S4D_TORCH": "ON", "S4D_ORT": "ON"}
    if "S4D_CUDA_ARCHITECTURES" not in os.environ:
        # All eight take over ten minutes on two cores; name them to release a wheel.
        settings["S4D_CUDA_ARCHITECTURES"] = "native" if shutil.which("nvidia-smi") else "90"
    return settings


def source_fingerprint(package: str, settings: dict[str, str]) -> str:
    """A hash of a package's sources and build switches; a wheel is built anew when it changes."""
    folder = ROOT / "packages" / f"s4d-{package}"
    command = ["git", "ls-files", "-co", "--exclude-standard", "--", str(folder)]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256(repr(sorted(settings.items())).encode())
    for name in sorted(listing.splitlines()):
        path = ROOT / name
        if path.is_file() and "/tests/" not in name:
            digest.update(name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def wheel(session: nox.Session, package: str) -> Path:
    """The wheel of a package in its present state, built if need be."""
    settings = native_build_settings() if package == "ops" else {}
    folder = WHEELS / f"{package}-{source_fingerprint(package, settings)}"
    found = list(folder.glob("*.whl"))
    if found:
        return found[0]
    for stale in WHEELS.glob(f"{package}-*"):
        shutil.rmtree(stale)
    source = ROOT / "packages" / f"s4d-{package}"
    session.run_install(
        *("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)),
        *("--build-constraint", str(CONSTRAINTS), str(source)),
        env={**settings, "PIP_CONSTRAINT": str(CONSTRAINTS)},
    )
    return next(folder.glob("*.whl"))


def install(session: nox.Session, *packages: str, extra: tuple[str, ...] = ()) -> None:
    """Install our wheels ("core" or "core[test]") and, beside them, what they declare."""
    wanted = []
    for package in packages:
        name, bracket, extras = package.partition("[")
        wanted.append(f"{wheel(session, name)}{bracket}{extras}")
    # Ours are reinstalled without their dependencies first: a rebuilt wheel has the same version.
    ours = [str(item).partition("[")[0] for item in wanted]
    session.install("--quiet", "--force-reinstall", "--no-deps", *ours)
    session.install("--quiet", "-c", str(CONSTRAINTS), *wanted, *extra)


def tensorrt_builder(session: nox.Session) -> dict[str, str]:
    """A TensorRT that parses and builds without a GPU, where the shared folder has its set-up.

    Its libraries come from PyPI once; returns the variable that the tests of engines look at.
    """
    shared = Path(os.environ.get("S4D_SHARED", ROOT.parent / "shared"))
    setup = shared / "tools" / "trt_aot" / "setup.sh"
    if not setup.is_file():
        session.log("tools/trt_aot is not in the shared folder: no TensorRT plans are built")
        return {}
    folder = ROOT / "build" / "trt_aot"
    python = str(Path(session.bin) / "python")
    session.run_install("bash", str(setup), str(folder), python, external=True)
    return {"S4D_TRT_AOT": str(folder)}


@nox.session
def demo(session: nox.Session) -> None:
    """A synthetic drive from pictures to tracked boxes; `-- --data DIR` runs on nuScenes."""
    install(session, "ops[torch]", "core", "runtime", "train", "export")
    session.run("python", "tools/demo.py", *session.posargs)


@nox.session
def venv(session: nox.Session) -> None:
    """All packages into .venv, to use them; `-- runtime` or other names for these alone."""
    wanted = session.posargs or list(PACKAGES)
    if unknown := set(wanted) - set(PACKAGES):
        session.error(f"expected names among {', '.join(PACKAGES)}, got {', '.join(unknown)}")
    home = ROOT / ".venv"
    session.run("python", "-m", "venv", str(home))
    # What stands below a package comes along; tests' extras stay out.
    below = {item.partition("[")[0] for name in wanted for item in STACK[name]}
    torch = below & {"core", "train", "export"}
    wheels = [str(wheel(session, name)) for name in PACKAGES if name in below]
    wheels[0] += "[torch]" if torch else ""
    pip = (str(home / "bin" / "python"), "-m", "pip", "install", "--quiet")
    session.run(*pip, "--force-reinstall", "--no-deps", *(w.partition("[")[0] for w in wheels),
                external=True)  # fmt: skip
    session.run(*pip, "-c", str(CONSTRAINTS), *wheels, external=True)
    session.log(f"ready: source {home.relative_to(ROOT)}/bin/activate")


@nox.session
@nox.parametrize("package", [*PACKAGES, "together"])
def tests(session: nox.Session, package: str) -> None:
    """The tests of every package in an environment with only what it declares, then all at once."""
    if package == "together":
        install(session, *EVERYTHING)
        session.run(*PYTEST, "tests", *session.posargs)
        return
    install(session, *STACK[package])
    env = tensorrt_builder(session) if package == "export" else {}
    with session.chdir(ROOT / "packages" / f"s4d-{package}"):
        session.run(*PYTEST, *session.posargs, env=env)


@nox.session
def lint(session: nox.Session) -> None:
    """Style (ruff) and the direction of imports between the packages (import-linter)."""
    session.install("--quiet", "ruff>=0.12", "import-linter>=2.1")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    sources = [str(ROOT / "packages" / f"s4d-{name}" / "src") for name in PACKAGES]
    session.run("lint-imports", env={"PYTHONPATH": os.pathsep.join(sources)})


@nox.session
def types(session: nox.Session) -> None:
    """Static types (mypy), package by package."""
    install(session, *EVERYTHING, extra=("mypy>=1.15", "types-tqdm"))
    for name in PACKAGES:
        session.run("mypy", f"packages/s4d-{name}/src/s4d_{name}")


@nox.session
def build(session: nox.Session) -> None:
    """Wheels and sdists in dist/, each installed and imported in this clean environment."""
    session.install("--quiet", "build")
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    for name in PACKAGES:
        source = str(ROOT / "packages" / f"s4d-{name}")
        session.run("python", "-m", "build", "--sdist", "--outdir", str(dist), source)
        shutil.copy(wheel(session, name), dist)
    install(session, "ops[torch]", "core", "runtime", "train", "export")
    modules = ", ".join(f"s4d_{name}" for name in PACKAGES)
    session.run("python", "-c", f"import {modules}, s4d_ops.torch")
    for program in ("s4d-train", "s4d-export", "s4d-run"):
        session.run(program, "--help", silent=True)


@nox.session
def no_torch(session: nox.Session) -> None:
    """s4d-runtime alone: it imports and runs an artifact, and torch is nowhere."""
    install(session, "ops", "runtime")
    # The artifact is written with onnx, which is kept out of the environment under test.
    scratch = ROOT / "build" / "no_torch"
    onnx = scratch / "onnx"
    if not onnx.exists():
        session.run_install(
            "python", "-m", "pip", "install", "--quiet", "--target", str(onnx), "onnx"
        )
    tests = ROOT / "packages" / "s4d-runtime" / "tests"
    artifact = str(scratch / "echo.s4d")
    write = "import pathlib, runtime_tiny; runtime_tiny.tiny_artifact(pathlib.Path({!r}))"
    path = os.pathsep.join((str(onnx), str(tests)))
    session.run("python", "-c", write.format(artifact), env={"PYTHONPATH": path})
    session.run("python", "tools/check_no_torch.py", artifact)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Coverage-guided fuzzing of the runtime's doors; `-- -runs=30000` and the like."""
    install(session, "ops", "runtime[test]", extra=("atheris>=2.3",))
    with session.chdir(ROOT / "packages" / "s4d-runtime"):
        for target in ("artifact", "frame"):
            options = session.posargs or ["-runs=5000"]
            session.run("python", "tests/fuzz/fuzz_atheris.py", target, *options)


@nox.session
def rerun(session: nox.Session) -> None:
    """The rerun recording, with the NumPy that rerun-sdk needs."""
    session.install("--quiet", wheel(session, "ops"), f"{wheel(session, 'runtime')}[rerun,test]")
    with session.chdir(ROOT / "packages" / "s4d-runtime"):
        session.run(*PYTEST, "tests/test_runtime_recording.py")


@nox.session
def tensorrt(session: nox.Session) -> None:
    """The TensorRT plugin, compiled against headers of 10 and of 11; its tests and registration.

    Headers of 10 come from a public wheel. Those of 11 are in no package: name their folder, the
    `include` of an installation or of NVIDIA's open-source repository, as `-- DIR` or in
    S4D_TENSORRT_INCLUDE_DIR. Without it only 10 is compiled, and a warning says so.
    """
    headers = ROOT / "build" / "tensorrt-headers" / "10"
    source = ROOT / "packages" / "s4d-ops"
    if not headers.exists():
        fetch = source / "tools" / "fetch_tensorrt_headers.py"
        session.run_install("python", str(fetch), "--target", str(headers))
    given = session.posargs or os.environ.get("S4D_TENSORRT_INCLUDE_DIR", "").split(";")
    folders = {tensorrt_major(session, Path(name)): name for name in given if name}
    folders.setdefault(10, str(headers))
    settings = {"S4D_TORCH": "OFF", "S4D_TENSORRT": "ON", "S4D_CUDA_ARCHITECTURES": "90"}
    settings["S4D_TENSORRT_INCLUDE_DIR"] = ";".join(folders[major] for major in sorted(folders))
    session.install("--quiet", f"{source}[test]", env=settings)
    with session.chdir(source):
        session.run(*PYTEST, "-k", "tensorrt", "tests", env=settings)
        for major in sorted(folders):  # each version's own plugin registry, of the lean runtime
            session.install("--quiet", "--no-deps", f"tensorrt-lean-cu13-libs=={major}.*")
            session.run(*PYTEST, "-k", "real_plugin_registry", "tests", env=settings)
    if 11 in folders:
        session.log(f"compiled against TensorRT {' and '.join(map(str, sorted(folders)))}")
    else:
        session.warn("only TensorRT 10 was compiled: name a folder of TensorRT 11 headers for both")


def tensorrt_major(session: nox.Session, folder: Path) -> int:
    """The major version of a folder of TensorRT headers."""
    header = folder / "NvInferVersion.h"
    if not header.is_file():
        session.error(f"expected TensorRT headers in {folder}: there is no NvInferVersion.h")
    # "#define NV_TENSORRT_MAJOR 10", or by another name in later headers.
    pattern = r"^#define (?:NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE) +(\d+)"
    found = re.search(pattern, header.read_text(), re.MULTILINE)
    if found:
        return int(found[1])
    session.error(f"{header} does not say which version it is")


@nox.session
def bench(session: nox.Session) -> None:
    """The kernels and the demo's model on the CPU as Markdown tables; `-- NAME ARGS` runs one.

    NAME is a script of packages/*/benchmarks or tools/model_zoo; the rest of the line goes to it.
    What a GPU has to show: tools/gpu_check.sh.
    """
    found = [*ROOT.glob("packages/*/benchmarks/*.py"), *ROOT.glob("tools/model_zoo/*.py")]
    scripts = {path.stem: str(path) for path in sorted(found)}
    name, *arguments = session.posargs or ["cpu_kernels"]
    if name not in scripts:
        session.error(f"expected one of {', '.join(scripts)}, got {name}")
    install(session, *EVERYTHING)
    session.run("python", scripts[name], *arguments)
    if session.posargs:
        return
    folder = ROOT / "build" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    artifacts = []
    for op in ("plugin", "standard"):  # our operator, and the same in standard ones
        artifacts.append(str(folder / f"tiny_{op}.s4d"))
        demo = str(ROOT / "demo" / "sparse4dv3_tiny")
        session.run("s4d-export", "onnx", demo, "--op", op, "-o", artifacts[-1])
    session.run("python", scripts["cpu_operator_modes"], *artifacts)
