"""Who is on the street: the ego drive and all annotated objects of a scene, without collisions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .clearance import Clearance, swept
from .geometry import Array
from .objects import draw_size, make_shape
from .paths import Motion, lane_path, straight
from .shapes import Shape
from .town import CROSSING, HALF_ROAD, LANES, PARKING, PAVEMENT, Town

__all__ = ["Actor", "Traffic", "plan_ego"]

Rng = np.random.Generator


@dataclass(frozen=True)
class Actor:
    """One annotated object."""

    name: str
    size: tuple[float, float, float]
    shape: Shape
    motion: Motion
    resting: str
    """Attribute while it stands; "" where the class has none."""
    moving: str
    """Attribute while it moves."""

    def attribute(self, time: float) -> str:
        return self.moving if self.motion.speed(time) > 0.3 else self.resting


def plan_ego(town: Town, rng: Rng, duration: float) -> Motion:
    """A drive of ``duration`` seconds with turns at some crossings and at times a halt."""
    heading = int(rng.integers(4))
    axis = heading % 2
    sign = 1.0 if heading < 2 else -1.0
    # The first crossing comes after 15 to 60 m.
    position = [0.0, 0.0]
    position[axis] = -sign * float(rng.uniform(15, 60))
    turns = [int(rng.choice([-1, 0, 1], p=[0.35, 0.3, 0.35])) for _ in range(4)]
    cruise = float(rng.uniform(5.0, 11.0))
    path = lane_path(
        town,
        (position[0], position[1]),
        heading,
        LANES[int(rng.integers(2))],
        14.0 * duration + 200.0,
        turns,
    )
    stop = None
    if rng.random() < 0.3:
        stop = (float(rng.uniform(20, 60)), float(rng.uniform(2, 5)))
    return Motion.driving(path, cruise, at=5.0, time=0.0, stop=stop)


class Traffic:
    """Places actors about an ego drive; what would touch another actor is left out."""

    def __init__(self, town: Town, ego: Motion, duration: float, rng: Rng, density: float) -> None:
        self.town = town
        self.ego = ego
        self.rng = rng
        self.duration = duration
        self.times = np.arange(-0.5, duration + 0.75, 0.25)
        self.actors: list[Actor] = []
        self._clearance = Clearance()
        self._clearance.keep(swept(ego.at(self.times), 4.9, 2.0, ahead=1.4))
        self._populate(density)

    def _populate(self, density: float) -> None:
        span = np.hypot(*(self.ego.at(self.duration) - self.ego.at(0.0))[:2])
        # More road passes by in a longer drive.
        share = density * (1.0 + span / 120.0)

        def count(mean: float) -> int:
            return int(self.rng.poisson(mean * share))

        for _ in range(max(1, count(1.5))):
            self._work_zone()
        for name, mean in (
            ("bus", 2.0),
            ("truck", 1.8),
            ("trailer", 1.8),
            ("car", 5.5),
            ("motorcycle", 2.8),
            ("bicycle", 2.8),
        ):
            for _ in range(count(mean)):
                self._driver(name)
        for name, mean in (
            ("trailer", 1.6),
            ("truck", 1.4),
            ("bus", 1.0),
            ("car", 5.0),
            ("motorcycle", 2.2),
            ("bicycle", 2.4),
        ):
            for _ in range(count(mean)):
                self._parked(name)
        for _ in range(count(9.0)):
            self._walker()
        for _ in range(count(2.0)):
            self._crosser()

    def _add(
        self,
        name: str,
        motion: Motion,
        resting: str,
        moving: str,
        size: tuple[float, float, float] | None = None,
        ridden: bool = True,
        gap: float = 0.35,
    ) -> bool:
        """Keep the actor unless it comes closer than ``gap`` to another one."""
        size = size or draw_size(name, self.rng, ridden)
        way = swept(motion.at(self.times), size[0], size[1])
        if not self._clearance.allows(way, gap):
            return False
        self._clearance.keep(way)
        shape = make_shape(name, size, self.rng, ridden)
        self.actors.append(Actor(name, size, shape, motion, resting, moving))
        return True

    def _street_point(self, spread: float) -> tuple[Array, int, float]:
        """A point on the middle of a street near the ego drive, a heading, and the time."""
        time = float(self.rng.uniform(0.0, self.duration))
        x, y, angle = self.ego.at(time)
        along = float(self.rng.normal(0.0, spread))
        if self.rng.random() < 0.75:  # the ego's own street
            quarter = round(angle / (np.pi / 2)) % 4
        else:
            quarter = int(self.rng.integers(4))
        axis = quarter % 2
        point = np.array([x, y])
        block = self.town.block[1 - axis]
        point[1 - axis] = np.round(point[1 - axis] / block) * block
        point[axis] += along
        if self.rng.random() < 0.5:
            quarter = (quarter + 2) % 4
        return point, quarter, time

    def _driver(self, name: str) -> None:
        rng = self.rng
        for _ in range(6):
            point, heading, time = self._street_point(28.0)
            axis = heading % 2
            sign = 1.0 if heading < 2 else -1.0
            cruise = float(rng.uniform(3.0, 11.0))
            lane = LANES[int(rng.integers(2))]
            if name == "bicycle":
                lane, cruise = 6.55, float(rng.uniform(2.5, 5.5))
            if name in ("bus", "truck", "trailer"):
                lane = LANES[1]
            back = 40.0 + cruise * (time + 1.0)
            start = point.copy()
            start[axis] -= sign * back
            turning = name in ("car", "motorcycle") and rng.random() < 0.35
            turns = [0] * int(rng.integers(4)) + [int(rng.choice([-1, 1]))] if turning else []
            path = lane_path(
                self.town,
                (start[0], start[1]),
                heading,
                lane,
                back + cruise * (self.duration - time) + 120.0,
                turns,
            )
            stop = None
            if rng.random() < 0.3:
                stop = (back + float(rng.uniform(-10, 20)), float(rng.uniform(3, 12)))
            motion = Motion.driving(path, cruise, back, time, stop=stop)
            if name == "trailer":
                if self._truck_and_trailer(motion):
                    return
                continue
            cycle = name in ("motorcycle", "bicycle")
            resting = "cycle.with_rider" if cycle else "vehicle.stopped"
            moving = "cycle.with_rider" if cycle else "vehicle.moving"
            if self._add(name, motion, resting, moving, gap=0.6):
                return

    def _truck_and_trailer(self, motion: Motion) -> bool:
        size = draw_size("truck", self.rng)
        if not self._add("truck", motion, "vehicle.stopped", "vehicle.moving", size, gap=0.6):
            return False
        trailer = draw_size("trailer", self.rng)
        behind = -(size[0] / 2 + trailer[0] / 2 + 0.9)
        follow = Motion(motion.path, motion.times, motion.start, behind)
        self._add("trailer", follow, "vehicle.stopped", "vehicle.moving", trailer, gap=0.0)
        return True

    def _beside(self, offset: float) -> tuple[float, float, float]:
        """A place ``offset`` metres right of a street's middle, away from the crossings."""
        for _ in range(20):
            point, heading, _ = self._street_point(32.0)
            axis = heading % 2
            block = self.town.block[axis]
            if abs(point[axis] - np.round(point[axis] / block) * block) > HALF_ROAD + 9.0:
                break
        angle = heading * np.pi / 2
        right = np.array([np.sin(angle), -np.cos(angle)])
        x, y = point + offset * right
        return float(x), float(y), float(angle)

    def _parked(self, name: str) -> None:
        rng = self.rng
        for _ in range(6):
            offset = PARKING
            if name == "bicycle":
                offset = HALF_ROAD + float(rng.uniform(1.6, 3.4))
            x, y, angle = self._beside(offset + float(rng.normal(0.0, 0.08)))
            angle += float(rng.normal(0.0, 0.02))
            cycle = name in ("motorcycle", "bicycle")
            if cycle:
                angle += float(rng.uniform(-1.2, 1.2))
            attribute = "cycle.without_rider" if cycle else "vehicle.parked"
            if self._add(
                name, Motion.standing(x, y, angle), attribute, attribute, ridden=not cycle
            ):
                return

    def _walker(self) -> None:
        rng = self.rng
        for _ in range(4):
            x, y, angle = self._beside(HALF_ROAD + float(rng.uniform(1.5, PAVEMENT - 0.4)))
            if rng.random() < 0.25:
                motion = Motion.standing(x, y, float(rng.uniform(-np.pi, np.pi)))
            else:
                heading = angle + (np.pi if rng.random() < 0.5 else 0.0)
                speed = float(rng.uniform(0.7, 1.9))
                time = float(rng.uniform(0.0, self.duration))
                length = speed * self.duration + 20.0
                start = (x - np.cos(heading) * length / 2, y - np.sin(heading) * length / 2)
                path = straight((float(start[0]), float(start[1])), heading, length)
                motion = Motion.driving(path, speed, length / 2, time)
            if self._add("pedestrian", motion, "pedestrian.standing", "pedestrian.moving"):
                return

    def _crosser(self) -> None:
        """A pedestrian on a zebra crossing."""
        rng = self.rng
        for _ in range(6):
            point, heading, time = self._street_point(25.0)
            axis = heading % 2
            block = self.town.block[axis]
            sign = 1.0 if rng.random() < 0.5 else -1.0
            middle = np.round(point[axis] / block) * block
            point[axis] = middle + sign * (HALF_ROAD + float(rng.uniform(*CROSSING)))
            angle = heading * np.pi / 2 + np.pi / 2
            speed = float(rng.uniform(0.9, 1.8))
            length = 2 * HALF_ROAD + 2 * speed * self.duration
            start = point - length / 2 * np.array([np.cos(angle), np.sin(angle)])
            path = straight((float(start[0]), float(start[1])), angle, length)
            motion = Motion.driving(path, speed, length / 2, time)
            if self._add("pedestrian", motion, "pedestrian.standing", "pedestrian.moving"):
                return

    def _work_zone(self) -> None:
        """A digger at the kerb with cones before it and barriers beside it."""
        rng = self.rng
        for _ in range(8):
            x, y, angle = self._beside(PARKING)
            forward = np.array([np.cos(angle), np.sin(angle)])
            right = np.array([np.sin(angle), -np.cos(angle)])

            def at(ahead: float, aside: float) -> tuple[float, float]:
                p = np.array([x, y]) + ahead * forward + aside * right  # noqa: B023
                return float(p[0]), float(p[1])

            # The whole zone must be clear of what drives by.
            digger = Motion.standing(x, y, angle + float(rng.choice([0.0, np.pi])))
            if not self._add(
                "construction_vehicle", digger, "vehicle.stopped", "vehicle.moving", gap=0.2
            ):
                continue
            spacing = float(rng.uniform(2.2, 3.5))
            for k in range(int(rng.integers(3, 7))):
                cx, cy = at(-5.0 - k * spacing, -1.0 + 0.45 * k)
                self._add("traffic_cone", Motion.standing(cx, cy, angle), "", "", gap=0.1)
            for k in range(int(rng.integers(0, 4))):
                cx, cy = at(5.0 + k * spacing, -0.9)
                self._add("traffic_cone", Motion.standing(cx, cy, angle), "", "", gap=0.1)
            for k in range(int(rng.integers(3, 7))):
                cx, cy = at(-5.0 + k * 2.75, 2.1)
                turned = angle + np.pi / 2 + float(rng.normal(0.0, 0.06))
                self._add("barrier", Motion.standing(cx, cy, turned), "", "", gap=-0.6)
            return
