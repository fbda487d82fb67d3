"""A scene: town, light, ego drive and traffic, and its geometry at any time."""

from __future__ import annotations

import numpy as np

from .camera import Faces
from .geometry import Array, transform, yaw_matrix
from .scan import Parts
from .shading import Light, make_noise
from .town import Town
from .traffic import Traffic, plan_ego

__all__ = ["Scene"]


class Scene:
    """Everything that a seed decides about one scene of ``duration`` seconds."""

    def __init__(self, seed: np.random.SeedSequence, duration: float, density: float) -> None:
        town_seed, ego_seed, traffic_seed, light_seed = seed.spawn(4)
        rng = np.random.default_rng
        layout = rng(town_seed)
        self.town = Town.draw(layout)
        self.ego = plan_ego(self.town, rng(ego_seed), duration)
        track = self.ego.at(np.arange(0.0, duration + 0.5, 0.5))[:, :2]
        # Scenery stands wherever the drive can see it.
        static = self.town.scenery(layout, track.min(0) - 130.0, track.max(0) + 130.0)
        self.light = Light.draw(rng(light_seed))
        self.noise = make_noise(rng(light_seed))
        self.actors = Traffic(self.town, self.ego, duration, rng(traffic_seed), density).actors

        shapes = [a.shape for a in self.actors]
        self._still = _normals(static.quads)
        self._static = static.quads
        self._quads = np.concatenate([s.quads for s in shapes])
        self._normal = _normals(self._quads)
        self._owner = np.concatenate(
            [np.full(len(s.quads), i, dtype=np.int64) for i, s in enumerate(shapes)]
        )
        offsets = np.cumsum([0] + [int(s.parts.max()) + 1 for s in shapes])
        self._parts = np.concatenate(
            [s.parts + offset for s, offset in zip(shapes, offsets[:-1], strict=True)]
            + [static.parts + offsets[-1]]
        )
        self._colours = np.concatenate([*(s.colours for s in shapes), static.colours])
        self._materials = np.concatenate([*(s.materials for s in shapes), static.materials])
        self._actor = np.concatenate([self._owner, np.full(len(static.quads), -1)])

    def ego_to_town(self, time: float) -> Array:
        """(4, 4) ego pose at ``time``."""
        x, y, heading = self.ego.at(time)
        return transform(yaw_matrix(float(heading)), np.array([x, y, 0.0]))

    def poses(self, time: float) -> Array:
        """(actors, 3) x, y, heading of every actor."""
        return np.stack([a.motion.at(time) for a in self.actors])

    def faces(self, time: float) -> Faces:
        """All faces at ``time``; actors first, then scenery."""
        poses = self.poses(time)[self._owner]
        cos, sin = np.cos(poses[:, 2]), np.sin(poses[:, 2])
        quads = _turn(self._quads, cos[:, None], sin[:, None])
        quads[..., :2] += poses[:, None, :2]
        normals = _turn(self._normal, cos, sin)
        return Faces(
            np.concatenate([quads, self._static]),
            np.concatenate([normals, self._still]),
            self._colours,
            self._materials,
            self._actor,
        )

    def parts(self, faces: Faces) -> Parts:
        """The convex parts of ``faces`` for the LiDAR."""
        brightness = self._colours.mean(1)
        return Parts.build(faces.quads, faces.normals, self._parts, self._actor, brightness)


def _turn(vectors: Array, cos: Array, sin: Array) -> Array:
    """Rotate (..., 3) about z."""
    x, y = vectors[..., 0], vectors[..., 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y, vectors[..., 2]], -1)


def _normals(quads: Array) -> Array:
    normal = np.cross(quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1])
    return np.asarray(normal / np.linalg.norm(normal, axis=1, keepdims=True))
