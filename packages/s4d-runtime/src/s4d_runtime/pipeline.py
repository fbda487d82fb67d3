"""From six raw camera images to tracked boxes, frame by frame."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s4d_ops.image import ResizeCrop

from .admission import Admission
from .artifact import Artifact, Manifest, read_artifact
from .backends import Backend, EngineOptions, load_backend
from .checks import CheckedFrame, Refusal
from .errors import BackendError, BadOutputError, FrameError
from .frame import Detections, Frame
from .geometry import lidar2img
from .image_input import PreparedImage
from .policy import FramePolicy
from .report import FrameReport, log_event
from .stats import Stats, StopWatch
from .timeline import Step, Timeline
from .track_ids import RENUMBER_ABOVE, TrackIds
from .turns import Turns

__all__ = ["FrameReport", "Pipeline"]

log = logging.getLogger("s4d_runtime")
log.addHandler(logging.NullHandler())  # silent until the application sets logging up

ID_STATE, ID_COUNTER = "state_track_id", "state_id_counter"


class Pipeline:
    """An artifact, an engine, and the state between frames.

    One frame at a time: calls from several threads wait for each other. Several pipelines share
    nothing.

    Attributes:
        manifest: what the artifact says.
        policy: what happens to frames that are not as they should be.
        stats: counters and latencies.
        backend_choice: which engine runs, and why not a better one.
        last: what happened to the last frame.
    """

    def __init__(
        self, backend: Backend, policy: FramePolicy, backend_choice: str = "", threads: int = 0
    ) -> None:
        self.manifest: Manifest = backend.manifest
        self.policy = policy
        self.stats = Stats()
        self.backend_choice = backend_choice or backend.name
        self.last: FrameReport | None = None
        self._backend = backend
        self._threads = threads
        self._timeline = Timeline(policy, self.manifest.thresholds.max_time_interval)
        self._ids = TrackIds()
        self._admission = Admission(backend, policy)
        self._turns = Turns()

    @classmethod
    def load(
        cls,
        artifact: str | os.PathLike[str] | Artifact,
        backend: str = "auto",
        *,
        threads: int = 0,
        policy: FramePolicy | str | None = None,
        device: int = 0,
        tf32: bool = False,
        cuda_graph: bool = True,
        fuse: bool = True,
        fp32x3: bool = True,
    ) -> Pipeline:
        """Load an artifact.

        Args:
            artifact: path of ``NAME.s4d``, or an open ``Artifact``.
            backend: ``"auto"`` takes the best that works here; ``backend_choice`` says which.
                Or a name: ``"tensorrt"``, ``"onnxruntime-cuda"``, ``"onnxruntime-cpu"``.
            threads: CPU threads for the engine and the image preparation; 0 leaves it to them.
            policy: a ``FramePolicy``, or text for ``FramePolicy.parse``. Default: every unsound
                frame is an error, gaps and pose jumps reset.
            device: number of the CUDA device.
            tf32: let fp32 arithmetic of ONNX Runtime's CUDA provider drop to TF32.
            cuda_graph: replay the network as a CUDA graph where the engine can.
            fuse: fused operators of s4d-ops under ONNX Runtime's CUDA provider.
            fp32x3: under it, convolutions and linear layers of fp32 artifacts as sums of
                half-precision products: twice as fast, errors of float32, values within +-65504.
                What is larger becomes NaN, which is refused. Not with ``tf32`` or without ``fuse``.

        Raises:
            ArtifactError: the file is not a sound artifact.
            BackendError: no engine can run it, or the engine refused it.
            PolicyError: the policy is not valid.
        """
        if not isinstance(policy, FramePolicy):
            policy = FramePolicy.parse(policy or "")
        options = EngineOptions(threads, device, tf32, cuda_graph, fuse, fp32x3)
        if isinstance(artifact, Artifact):
            engine, choice = load_backend(artifact, backend, options=options)
        else:
            with read_artifact(artifact) as opened:
                engine, choice = load_backend(opened, backend, options=options)
        log.info("pipeline loaded: %s", choice, extra={"s4d": {"backend": engine.name}})
        return cls(engine, policy, choice, threads)

    @property
    def backend_name(self) -> str:
        """Name of the engine that runs."""
        return self._backend.name

    @property
    def delay(self) -> int:
        """Calls by which results lag: a model that looks ahead detects on an earlier frame.

        Its first results after a reset are empty: all scores are 0.
        """
        queue = self.manifest.model.get("queue")
        if not isinstance(queue, dict) or queue.get("frames") != "future":
            return 0
        return int(queue["length"])

    def memory(self) -> dict[str, int]:
        """Bytes that the engine knows of, by kind."""
        return self._backend.memory()

    def reset(self) -> None:
        """Forget the past, at once: the next frame is a first one and track ids start at 0."""
        with self._turns:
            self._forget()
            self._ids = TrackIds()

    def prepare(self, camera: int | str, image: Any) -> PreparedImage:
        """Bring one camera's image to the engine now, before the frame is complete.

        Put the result into ``Frame.images`` in the image's place. Cameras may come one at a time
        and from their own threads, also while a frame runs. When the call returns, the image's
        memory is free again.

        Args:
            camera: index in the manifest's order, or name.
            image: as in ``Frame.images``.

        Raises:
            ImageError: the image is not as it should be, or there is no such camera.
            BackendError: the engine failed.
        """
        self._turns.check()
        index, checked, plan = self._admission.image(camera, image)
        if plan is None:
            assert isinstance(checked, PreparedImage)
            return checked
        return self._backend.prepare_image(index, checked, plan, self._threads)

    def image_buffers(self, sizes: Sequence[tuple[int, int]]) -> list[NDArray[np.uint8]]:
        """Arrays (H, W, 3) uint8 for images of these (height, width), for cameras to write into.

        Images in them reach the engine fastest: on a CUDA device they are page-locked. They are
        the caller's, hold zeros at first, and must not be used after ``close``.

        Raises:
            DeviceMemoryError: there is no memory left for them.
        """
        self._turns.check()
        return self._backend.pinned_images(sizes)

    def __call__(self, frame: Frame) -> Detections | None:
        """Detect and track on one frame.

        Returns:
            The frame's tracked boxes; None if the policy skipped the frame, which says nothing
            about what is there. The default policy never skips.

        Raises:
            FrameError: the frame was refused; one of its subclasses says why. The state is as it
                was, and the next sound frame goes on from it.
            BadOutputError: the network gave NaN or infinite values. The past is forgotten.
            BackendError: the engine failed; the state is as it was.
        """
        with self._turns:
            watch = StopWatch()
            try:
                checked, plans = self._admission.frame(frame)
                step = self._timeline.judge(checked)
            except Refusal as refusal:
                self._refuse(refusal)
                return None
            watch.lap("check")
            outputs = self._run(checked, plans, step, watch)
            self._backend.commit()
            self._timeline.accept(checked)
            detections = self._finish(outputs)
            watch.lap("finish")
            self._report(step, watch)
            return detections

    def close(self) -> None:
        """Give the engine's memory back. The pipeline cannot be used afterwards."""
        if self._turns.end():
            self._backend.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _fill(self, checked: CheckedFrame, plans: list[ResizeCrop], step: Step) -> None:
        """Write the graph's inputs. Poses were combined in float64; only the result is float32."""
        backend = self._backend
        backend.load_images(checked.images, plans, self._threads)
        projections = backend.buffer("lidar2img")
        pairs = zip(checked.intrinsics, checked.lidar2cameras, plans, strict=True)
        for camera, (intrinsic, lidar2camera, plan) in enumerate(pairs):
            projections[camera] = lidar2img(intrinsic, lidar2camera, plan.matrix)
        backend.buffer("prev_to_current")[...] = step.prev_to_current
        backend.buffer("time_interval")[0] = step.time_interval
        backend.buffer("state_valid")[0] = 0 if step.first else 1

    def _run(
        self, checked: CheckedFrame, plans: list[ResizeCrop], step: Step, watch: StopWatch
    ) -> dict[str, NDArray[Any]]:
        try:
            if step.first:
                self._forget()
            self._fill(checked, plans, step)
            watch.lap("prepare")
            outputs = self._backend.run()
            watch.lap("infer")
            watch.milliseconds.update(self._backend.stage_milliseconds())
        except BackendError as error:
            self._fail("backend", error)
            raise
        if not (np.isfinite(outputs["boxes"]).all() and np.isfinite(outputs["scores"]).all()):
            bad = BadOutputError(
                "expected finite boxes and scores, got NaN or infinite ones; the past is "
                f"forgotten, and the next frame is a first one{self._backend.advice}"
            )
            self._forget()
            self._fail("bad_output", bad)
            raise bad
        return outputs

    def _finish(self, outputs: dict[str, NDArray[Any]]) -> Detections:
        """Copy the outputs out of the engine's buffers; ids become 64-bit."""
        track_ids = self._ids.translate(outputs["track_ids"])
        if ID_COUNTER in self.manifest.state and ID_STATE in self.manifest.state:
            counter = int(self._backend.read_state(ID_COUNTER)[0])
            if counter > RENUMBER_ABOVE:
                live, counter = self._ids.renumber(self._backend.read_state(ID_STATE), counter)
                self._backend.write_state(ID_STATE, live)
                self._backend.write_state(ID_COUNTER, np.array([counter], dtype=np.int32))
        return Detections(
            outputs["boxes"].copy(),
            outputs["scores"].copy(),
            outputs["labels"].astype(np.int64),
            track_ids,
        )

    def _forget(self) -> None:
        """Drop the past. Ids of the past are not used again (see ``reset`` for a fresh start)."""
        if ID_COUNTER in self.manifest.state:
            self._ids.restart_graph(int(self._backend.read_state(ID_COUNTER)[0]))
        self._backend.clear_state()
        self._timeline.clear()

    def _refuse(self, refusal: Refusal) -> None:
        """Note a skipped frame, or raise, by the policy."""
        if self.policy.action(refusal.cause) == "skip":
            self.stats.counters["skipped"] += 1
            self.stats.counters[f"cause.{refusal.cause}"] += 1
            self.last = FrameReport("skipped", refusal.cause, str(refusal.error))
            log_event("frame skipped", refusal.cause, str(refusal.error))
            return
        self._fail(refusal.cause, refusal.error)
        raise refusal.error from None

    def _fail(self, cause: str, error: FrameError | BackendError) -> None:
        self.stats.counters["refused"] += 1
        self.stats.counters[f"cause.{cause}"] += 1
        self.last = FrameReport("error", cause, str(error))
        log_event("frame refused", cause, str(error))

    def _report(self, step: Step, watch: StopWatch) -> None:
        outcome = "ok"
        if step.first:
            outcome = "first" if step.cause is None else "reset"
            self.stats.counters[outcome] += 1
        if step.cause is not None:
            self.stats.counters[f"cause.{step.cause}"] += 1
            log_event("past dropped", step.cause, "")
        self.stats.record(watch.milliseconds)
        self.last = FrameReport(outcome, step.cause, "", watch.milliseconds)
