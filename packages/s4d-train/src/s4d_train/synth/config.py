"""What is asked of the generator."""

from __future__ import annotations

from dataclasses import dataclass

from s4d_ops import S4DError

from .tables import scene_names

__all__ = ["SynthConfig", "SynthError"]


class SynthError(S4DError):
    """A synthetic data set that cannot be written as asked."""


@dataclass(frozen=True)
class SynthConfig:
    """What to generate."""

    scenes: int
    seed: int = 0
    image_size: tuple[int, int] = (800, 450)
    """Width, height in pixels."""
    frames: int = 40
    """Key frames per scene, two per second."""
    split: str = "auto"
    """"mini", "trainval", or "auto": mini up to ten scenes."""
    val_scenes: int | None = None
    """How many of the scenes are for validation; a fifth by default, at least one."""
    sweeps: int = 0
    """LiDAR sweeps between two key frames."""
    density: float = 1.0
    """Factor on the number of objects."""
    jpeg_quality: int = 90

    def names(self) -> list[str]:
        """Scene names, training first."""
        if self.scenes < 1 or self.frames < 1 or self.sweeps < 0:
            raise SynthError(
                f"expected at least one scene, one frame and no negative sweeps, got "
                f"{self.scenes}, {self.frames} and {self.sweeps}; give positive numbers"
            )
        if min(self.image_size) < 32:
            raise SynthError(
                f"expected images of at least 32 x 32 pixels, got {self.image_size}; "
                "give a larger --image-size"
            )
        val = self.val_scenes
        if val is None:
            val = max(1, round(0.2 * self.scenes))
        if not 0 <= val <= self.scenes:
            raise SynthError(f"expected 0 to {self.scenes} validation scenes, got {val}")
        try:
            return scene_names(self.layout, self.scenes - val, val)
        except ValueError as error:
            raise SynthError(str(error)) from None

    @property
    def layout(self) -> str:
        if self.split == "auto":
            return "mini" if self.scenes <= 10 else "trainval"
        if self.split not in ("mini", "trainval"):
            raise SynthError(f"expected split mini, trainval or auto, got {self.split!r}")
        return self.split

    @property
    def version(self) -> str:
        """Name of the folder of tables."""
        return f"v1.0-{self.layout}"
