"""Colours: ground, sky, faces, light and haze. All inputs are flat pixel arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .geometry import Array
from .shapes import FACADE, FOLIAGE, GLASS
from .town import CROSSING, HALF_ROAD, PAVEMENT, Town

__all__ = ["Light", "ground_colour", "make_noise", "shade_faces", "sky_colour"]

Image = npt.NDArray[Any]
"""float32"""
_TILE = 512


@dataclass(frozen=True)
class Light:
    """The weather of a scene."""

    sun: Array
    """(3,) unit vector towards the sun."""
    ambient: float
    direct: float
    haze: float
    """1 / metres."""
    horizon: tuple[float, float, float]
    zenith: tuple[float, float, float]
    cloud: float

    @staticmethod
    def draw(rng: np.random.Generator) -> Light:
        azimuth, height = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(38, 68))
        sun = np.array(
            [np.cos(azimuth) * np.cos(height), np.sin(azimuth) * np.cos(height), np.sin(height)]
        )
        overcast = float(rng.uniform(0, 1))
        return Light(
            sun,
            ambient=0.42 + 0.16 * overcast,
            direct=0.72 - 0.40 * overcast,
            haze=float(rng.uniform(1 / 900, 1 / 350)),
            horizon=(0.80, 0.84, 0.88),
            zenith=(0.30 + 0.3 * overcast, 0.48 + 0.16 * overcast, 0.78),
            cloud=0.15 + 0.5 * overcast,
        )


def make_noise(rng: np.random.Generator) -> Image:
    """(512, 512) tileable noise about 0, four octaves, within about -1..1."""
    total = np.zeros((_TILE, _TILE), dtype=np.float32)
    for octave, weight in ((8, 0.45), (32, 0.3), (128, 0.3), (512, 0.35)):
        grid = rng.standard_normal((octave, octave)).astype(np.float32)
        total += weight * _enlarge(grid, _TILE // octave)
    return np.clip(total, -1.5, 1.5)


def _enlarge(grid: Image, factor: int) -> Image:
    """Bilinear enlargement that wraps round."""
    if factor == 1:
        return grid
    for axis in (0, 1):
        following = np.roll(grid, -1, axis)
        part = (np.arange(factor, dtype=np.float32) / factor)[None, :]
        flat_a = np.moveaxis(grid, axis, -1)[..., None]
        flat_b = np.moveaxis(following, axis, -1)[..., None]
        mixed = flat_a * (1 - part) + flat_b * part
        grid = np.moveaxis(mixed.reshape(*mixed.shape[:-2], -1), -1, axis).astype(np.float32)
    return np.ascontiguousarray(grid)


def _lookup(noise: Image, x: Image, y: Image, scale: float) -> Image:
    i = np.floor(x * np.float32(scale)).astype(np.int32) & (_TILE - 1)
    j = np.floor(y * np.float32(scale)).astype(np.int32) & (_TILE - 1)
    result: Image = noise[i, j]
    return result


def _tone(colour: list[float]) -> Image:
    return np.array(colour, dtype=np.float32)


def _smooth(noise: Image, x: Image, y: Image, scale: float) -> Image:
    """Bilinear :func:`_lookup`."""
    u, v = x * np.float32(scale), y * np.float32(scale)
    iu, iv = np.floor(u), np.floor(v)
    fu, fv = u - iu, v - iv
    i, j = iu.astype(np.int32) & (_TILE - 1), iv.astype(np.int32) & (_TILE - 1)
    i1, j1 = (i + 1) & (_TILE - 1), (j + 1) & (_TILE - 1)
    low = noise[i, j] * (1 - fv) + noise[i, j1] * fv
    high = noise[i1, j] * (1 - fv) + noise[i1, j1] * fv
    result: Image = low * (1 - fu) + high * fu
    return result


def _line(distance: Image, half_width: float, footprint: Image) -> Image:
    """Coverage 0..1 of a pixel by a line, ``distance`` metres from its middle."""
    edge = np.clip((half_width - np.abs(distance)) / footprint + 0.5, 0.0, 1.0)
    return edge * np.minimum(1.0, 2.0 * half_width / footprint)


def _dashes(along: Image, period: float, share: float, footprint: Image) -> Image:
    """Coverage of a dashed pattern; fades to its mean where a pixel is longer than a dash."""
    phase = np.mod(along, period)
    sharp = (phase < period * share).astype(np.float32)
    fade = np.clip(footprint / period, 0.0, 1.0)
    return sharp * (1 - fade) + share * fade


def _blend(colour: Image, paint: tuple[float, float, float], amount: Image) -> None:
    colour += amount[:, None] * (np.asarray(paint, dtype=np.float32) - colour)


def ground_colour(town: Town, noise: Image, x: Image, y: Image, footprint: Image) -> Image:
    """(n, 3) colour of the ground at town coordinates; ``footprint`` metres per pixel."""
    dx, dy = town.offsets(x, y)
    fp = np.maximum(footprint, 0.01)
    ax, ay = np.abs(dx), np.abs(dy)
    nearest = np.minimum(ax, ay)
    road = nearest < HALF_ROAD
    pavement = ~road & (nearest < HALF_ROAD + PAVEMENT)

    fine = _lookup(noise, x, y, 14.0) / (1.0 + 12.0 * fp)
    coarse = _lookup(noise, x, y, 1.7)
    surface = np.where(road, 0, np.where(pavement, 1, 2))
    palette = np.array([(0.235, 0.24, 0.25), (0.50, 0.48, 0.46), town.lawn], dtype=np.float32)
    colour = palette[surface]
    strength = np.array([0.10, 0.07, 0.28], dtype=np.float32)[surface]
    gain = 1.0 + strength * (fine + 0.8 * coarse)
    # Tyres polish the tracks of each lane.
    across = nearest[road]
    track = np.exp(-3.0 * ((np.mod(across, 3.5) - 1.75) ** 2 - 0.7) ** 2)
    gain[road] *= 1.0 - 0.07 * track * (across < 7.0)
    colour *= gain[:, None]

    paved = np.flatnonzero(pavement)
    near = fp[paved]
    tiles = np.maximum(
        _line(np.mod(x[paved], 1.5) - 0.75, 0.03, near),
        _line(np.mod(y[paved], 1.5) - 0.75, 0.03, near),
    )
    colour[paved] += (0.7 * tiles)[:, None] * (_tone([0.33, 0.32, 0.31]) - colour[paved])
    edge = np.flatnonzero(np.abs(nearest - HALF_ROAD - 0.1) < 0.14 + fp)
    kerb = _line(nearest[edge] - HALF_ROAD - 0.1, 0.14, fp[edge])
    colour[edge] += kerb[:, None] * (_tone([0.62, 0.61, 0.59]) - colour[edge])

    worn = np.clip(0.85 + 0.3 * coarse, 0.3, 1.0)
    for lateral, ahead, along, side in ((ay, ax, x, dy), (ax, ay, y, dx)):
        # A street with lateral distance `lateral`; `ahead` is the distance to the crossing one.
        on = np.flatnonzero((lateral < HALF_ROAD) & (ahead > HALF_ROAD + CROSSING[0]))
        white, yellow = _markings(lateral[on], ahead[on], along[on], side[on], fp[on])
        wear = worn[on]
        tone = colour[on]
        tone += (white * wear)[:, None] * (_tone([0.82, 0.82, 0.80]) - tone)
        tone += (yellow * wear)[:, None] * (_tone([0.80, 0.58, 0.08]) - tone)
        colour[on] = tone
    return colour


def _markings(
    lateral: Image, ahead: Image, along: Image, side: Image, fp: Image
) -> tuple[Image, Image]:
    """Coverage 0..1 by white and by yellow paint on a street outside its crossings."""
    lane = ahead > HALF_ROAD + CROSSING[1] + 0.5
    white = _line(lateral - 3.5, 0.08, fp) * _dashes(along, 6.0, 0.5, fp)
    white = np.maximum(white, 0.8 * _line(lateral - 7.0, 0.06, fp))
    bay = _line(np.mod(along, 6.4) - 3.2, 0.05, fp) * (lateral > 7.0)
    white = np.maximum(white, 0.7 * bay) * lane
    zebra = (lateral < HALF_ROAD - 0.3) & (ahead < HALF_ROAD + CROSSING[1])
    white = np.maximum(white, _dashes(side + 50.0, 1.1, 0.5, fp) * zebra)
    stop = (lateral < 7.0) & (lateral > 0.3)
    stop &= np.abs(ahead - HALF_ROAD - CROSSING[1] - 1.0) < 0.2
    white = np.maximum(white, stop * np.minimum(1.0, 0.4 / fp))
    return white, _line(lateral - 0.17, 0.07, fp) * lane


def sky_colour(light: Light, noise: Image, direction: Array) -> Image:
    """(n, 3) colour of the sky along unit directions (n, 3) in the world."""
    up = np.clip(direction[:, 2], 0.0, 1.0).astype(np.float32)
    share = np.sqrt(up)[:, None]
    colour = np.asarray(light.horizon, np.float32) * (1 - share) + share * np.asarray(
        light.zenith, np.float32
    )
    reach = 260.0 / (up + 0.12)
    plane = direction[:, :2].astype(np.float32) * reach[:, None]
    cloud = 0.65 * _smooth(noise, plane[:, 0], plane[:, 1], 0.035)
    cloud += 0.35 * _smooth(noise, plane[:, 0], plane[:, 1], 0.13)
    cover = np.clip(cloud + 2.2 * light.cloud - 0.5, 0.0, 1.0) * np.clip(up * 6.0, 0.0, 1.0)
    _blend(colour, (0.90, 0.91, 0.93), 0.75 * cover)
    return colour


def shade_faces(
    light: Light,
    noise: Image,
    position: Array,
    normal: Array,
    colour: Array,
    material: npt.NDArray[np.int64],
) -> Image:
    """(n, 3) lit colour of object pixels.

    ``position`` (n, 3) in the town, ``normal`` (n, 3) unit outward, ``colour`` (n, 3) of the face.
    """
    base = colour.astype(np.float32).copy()
    facing = np.maximum(normal @ light.sun, 0.0).astype(np.float32)
    x, y, z = (position[:, k].astype(np.float32) for k in range(3))
    facade = material == FACADE
    if facade.any():
        base[facade] = _facade(base[facade], noise, x[facade], y[facade], z[facade], normal[facade])
    leaves = material == FOLIAGE
    if leaves.any():
        speckle = _lookup(noise, x[leaves] + 0.7 * z[leaves], y[leaves] + z[leaves], 9.0)
        base[leaves] *= (1.0 + 0.55 * speckle)[:, None]
    # Light from the sky comes from above, and less of it reaches what is near the ground.
    sky = light.ambient * (0.72 + 0.28 * normal[:, 2].astype(np.float32))
    sky *= 0.72 + 0.28 * np.clip(z / 0.9, 0.0, 1.0)
    lit = base * (sky + light.direct * facing)[:, None]
    glass = material == GLASS
    if glass.any():
        lit[glass] += 0.16 + 0.10 * np.clip(normal[glass, 2:3], 0, 1).astype(np.float32)
    return lit


def _facade(base: Image, noise: Image, x: Image, y: Image, z: Image, normal: Array) -> Image:
    """Windows, a shop front and stains on a wall."""
    along = np.where(np.abs(normal[:, 0]) > 0.5, y, x).astype(np.float32)
    storey, bay = z / 3.4, along / 3.1
    in_storey, in_bay = np.mod(storey, 1.0), np.mod(bay, 1.0)
    cell = _lookup(noise, np.floor(bay) * 7.3 + 13.0, np.floor(storey) * 11.7, 1.0)
    window = (in_storey > 0.30) & (in_storey < 0.80) & (in_bay > 0.24) & (in_bay < 0.76)
    shop = (z < 3.0) & (z > 0.4) & (in_bay > 0.06) & (in_bay < 0.94)
    result = base * (1.0 + 0.10 * _lookup(noise, along, z, 6.0))[:, None]
    result *= np.where(in_storey < 0.05, 0.8, 1.0).astype(np.float32)[:, None]
    pane = np.stack([0.10 + 0.05 * cell, 0.13 + 0.06 * cell, 0.17 + 0.07 * cell], -1)
    result = np.where((window & (z > 3.4))[:, None], pane, result)
    front = np.stack([0.22 + 0.12 * cell, 0.20 + 0.06 * cell, 0.18 - 0.05 * cell], -1)
    return np.where(shop[:, None], front, result).astype(np.float32)
