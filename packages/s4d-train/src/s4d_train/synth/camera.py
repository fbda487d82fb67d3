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
    depth: npt.NDArray[np.float32]
    """(H, W) metres along the optical axis, infinity for the sky."""


def render(
    faces: Faces,
    actors: int,
    town: Town,
    light: Light,
    noise: Image,
    camera: Camera,
    camera_to_town: Array,
    rng: np.random.Generator,
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

    rays = _rays(camera) @ rotation.T.astype(np.float32)
    depth = seen.depth.astype(np.float32)
    colour = np.empty((width * height, 3), dtype=np.float32)
    origin = eye.astype(np.float32)

    solid = np.flatnonzero(face >= 0)
    f = face[solid]
    position = origin + rays[solid] * depth[solid, None]
    colour[solid] = shade_faces(
        light,
        noise,
        position,
        faces.normals[f].astype(np.float32),
        faces.colours[f],
        faces.materials[f],
    )

    down = (face < 0) & (rays[:, 2] < -1e-3)
    ground = np.flatnonzero(down)
    ray = rays[ground]
    distance = -origin[2] / ray[:, 2]
    depth[ground] = distance
    spot = origin[:2] + ray[:, :2] * distance[:, None]
    # A pixel is longer on the ground the flatter it is seen.
    slant = np.sqrt(np.einsum("ni,ni->n", ray, ray)) * distance
    footprint = slant * np.sqrt(slant) * np.float32(1 / camera.intrinsic[0, 0] / origin[2] ** 0.5)
    shadow = _shadow(faces, light, camera, rotation, eye)[ground]
    tone = ground_colour(town, noise, spot[:, 0], spot[:, 1], footprint)
    sunlight = light.direct * light.sun[2]
    tone *= np.where(shadow, light.ambient, light.ambient + sunlight).astype(np.float32)[:, None]
    colour[ground] = tone

    sky = np.flatnonzero((face < 0) & ~down)
    high: Image = rays[sky]
    high = high / np.sqrt(np.einsum("ni,ni->n", high, high))[:, None]
    colour[sky] = sky_colour(light, noise, high)

    clear = np.exp(np.float32(-light.haze) * np.minimum(depth, 3000.0))
    clear[sky] = 1.0
    horizon = np.asarray(light.horizon, np.float32)
    colour = horizon + clear[:, None] * (colour - horizon)
    colour += rng.standard_normal((width * height, 1), dtype=np.float32) * np.float32(0.008)
    np.clip(colour, 0.0, 1.0, out=colour)
    picture = _GAMMA[(colour * 4095.0).astype(np.uint16)].reshape(height, width, 3)
    return View(
        picture, visible, covered, actor.reshape(height, width), depth.reshape(height, width)
    )


_GAMMA = (np.power(np.arange(4096) / 4095.0, 1 / 1.7) * 255.0 + 0.5).astype(np.uint8)


def _rays(camera: Camera) -> Image:
    """(H * W, 3) directions of the pixel centres with depth 1, in the camera's frame."""
    column = (np.arange(camera.width) + 0.5 - camera.intrinsic[0, 2]) / camera.intrinsic[0, 0]
    row = (np.arange(camera.height) + 0.5 - camera.intrinsic[1, 2]) / camera.intrinsic[1, 1]
    rays = np.ones((camera.height, camera.width, 3), dtype=np.float32)
    rays[..., 0] = column
    rays[..., 1] = row[:, None]
    return rays.reshape(-1, 3)


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
