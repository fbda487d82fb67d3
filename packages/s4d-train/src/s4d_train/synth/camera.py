"""One camera image: faces, shadows, ground and sky put together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .geometry import Array
from .raster import cover, resolve
from .rig import Camera
from .shading import Image, Light, ground_colour, shade_faces, sky_colour
from .town import Town

__all__ = ["Faces", "View", "render"]

_FAR = 220.0


@dataclass(frozen=True)
class Faces:
    """All faces of a moment, in town coordinates."""

    quads: Array
    """(F, 4, 3)"""
    normals: Array
    """(F, 3) unit, outward."""
    colours: Array
    materials: npt.NDArray[np.int64]
    actor: npt.NDArray[np.int64]
    """(F,) number of the annotated object, -1 for scenery."""


@dataclass(frozen=True)
class View:
    """A rendered image and what was seen of each actor."""

    image: npt.NDArray[np.uint8]
    """(H, W, 3) RGB"""
    visible: npt.NDArray[np.int64]
    """(actors,) pixels in which the actor is in front."""
    covered: npt.NDArray[np.int64]
    """(actors,) pixels that the actor would fill if nothing hid it."""
    actor: npt.NDArray[np.int64]
    """(H, W) number of the actor in front, -1 elsewhere."""
    depth: npt.NDArray[np.float64]
    """(H, W) metres along the optical axis, infinity for the sky."""


def render(
    faces: Faces, actors: int, town: Town, light: Light, noise: Image, camera: Camera,
    camera_to_town: Array, rng: np.random.Generator,
) -> View:
    """Draw what ``camera`` sees; ``camera_to_town`` is its (4, 4) pose."""
    width, height = camera.width, camera.height
    rotation, eye = camera_to_town[:3, :3], camera_to_town[:3, 3]

    towards = np.einsum("fi,fi->f", faces.normals, eye - faces.quads[:, 0]) > 0
    centre = faces.quads.mean(1)
    ahead = (faces.quads - eye) @ rotation[:, 2] > 0
    near = np.abs(centre - eye).max(1) < _FAR
    drawn = np.flatnonzero(towards & ahead.any(1) & near)
    fragments = cover((faces.quads[drawn] - eye) @ rotation, camera.intrinsic, width, height)
    seen = resolve(fragments, width * height)
    face = np.where(seen.face >= 0, drawn[seen.face], -1)
    actor = np.where(face >= 0, faces.actor[face], -1)
    visible = np.bincount(actor[actor >= 0], minlength=actors)
    owner = faces.actor[drawn[fragments.face]]
    own = owner >= 0
    pairs = np.unique(owner[own] * (width * height) + fragments.pixel[own])
    covered = np.bincount(pairs // (width * height), minlength=actors)

    column, row = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = np.stack(
        [(column.ravel() - camera.intrinsic[0, 2]) / camera.intrinsic[0, 0],
         (row.ravel() - camera.intrinsic[1, 2]) / camera.intrinsic[1, 1],
         np.ones(width * height)], -1,
    ) @ rotation.T
    depth = seen.depth.copy()
    colour = np.empty((width * height, 3), dtype=np.float32)

    solid = np.flatnonzero(face >= 0)
    f = face[solid]
    position = eye + rays[solid] * depth[solid, None]
    colour[solid] = shade_faces(
        light, noise, position, faces.normals[f], faces.colours[f], faces.materials[f]
    )

    down = (face < 0) & (rays[:, 2] < -1e-3)
    ground = np.flatnonzero(down)
    distance = -eye[2] / rays[ground, 2]
    depth[ground] = distance
    spot = eye[:2] + rays[ground, :2] * distance[:, None]
    # A pixel is longer on the ground the flatter it is seen.
    slant = np.linalg.norm(rays[ground], axis=1) * distance
    footprint = slant / camera.intrinsic[0, 0] * np.sqrt(slant / eye[2])
    shadow = _shadow(faces, light, camera, rotation, eye)[ground]
    tone = ground_colour(town, noise, spot[:, 0], spot[:, 1], footprint)
    sunlight = light.direct * light.sun[2] * np.where(shadow, 0.0, 1.0)
    colour[ground] = tone * (light.ambient + sunlight).astype(np.float32)[:, None]

    sky = np.flatnonzero((face < 0) & ~down)
    unit = rays[sky] / np.linalg.norm(rays[sky], axis=1, keepdims=True)
    colour[sky] = sky_colour(light, noise, unit)

    clear = np.ones(width * height, dtype=np.float32)
    hazy = np.isfinite(depth)
    clear[hazy] = np.exp(-light.haze * np.minimum(depth[hazy], 3000.0))
    clear = clear[:, None]
    colour = colour * clear + (1 - clear) * np.asarray(light.horizon, np.float32)

    picture = np.power(np.clip(colour, 0.0, 1.0), 1 / 1.7).reshape(height, width, 3) * 255.0
    picture += rng.standard_normal((height, width, 1), dtype=np.float32) * 2.0
    return View(
        np.clip(picture, 0, 255).astype(np.uint8), visible, covered,
        actor.reshape(height, width), depth.reshape(height, width),
    )


def _shadow(
    faces: Faces, light: Light, camera: Camera, rotation: Array, eye: Array
) -> npt.NDArray[np.bool_]:
    """(H * W,) True where a face that looks at the sun throws its shadow on the ground."""
    lit = np.flatnonzero(
        (faces.normals @ light.sun > 0) & (np.abs(faces.quads.mean(1) - eye).max(1) < 70.0)
    )
    quads = faces.quads[lit]
    flat = quads[..., :2] - quads[..., 2:] / light.sun[2] * light.sun[:2]
    fallen = np.concatenate([flat, np.zeros((*flat.shape[:2], 1))], -1)
    ahead = ((fallen - eye) @ rotation[:, 2] > 0).any(1)
    width, height = camera.width, camera.height
    fragments = cover((fallen[ahead] - eye) @ rotation, camera.intrinsic, width, height)
    mask = np.zeros(width * height, dtype=bool)
    mask[fragments.pixel] = True
    return mask
