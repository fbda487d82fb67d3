"""Names and rules of the nuScenes detection and tracking tasks.

Sources: the nuScenes detection and tracking task definitions (class mapping, ranges) and the
attribute rule that the Sparse4D family uses when it writes submissions.
"""

from __future__ import annotations

__all__ = [
    "CATEGORY_TO_DETECTION",
    "CLASS_RANGE",
    "DETECTION_NAMES",
    "TRACKING_NAMES",
    "attribute_name",
    "detection_name",
]

# The order of the classes in every Sparse4D model.
DETECTION_NAMES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
TRACKING_NAMES = ("bicycle", "bus", "car", "motorcycle", "pedestrian", "trailer", "truck")

# Metres from the ego vehicle (ground plane) within which a class is scored.
CLASS_RANGE = {
    "car": 50.0,
    "truck": 50.0,
    "bus": 50.0,
    "trailer": 50.0,
    "construction_vehicle": 50.0,
    "pedestrian": 40.0,
    "motorcycle": 40.0,
    "bicycle": 40.0,
    "traffic_cone": 30.0,
    "barrier": 30.0,
}

CATEGORY_TO_DETECTION = {
    "movable_object.barrier": "barrier",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.bicycle": "bicycle",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
}

MOVING_SPEED = 0.2  # metres per second

# Class: attribute above MOVING_SPEED, attribute at rest.
_ATTRIBUTES = {
    "car": ("vehicle.moving", "vehicle.parked"),
    "truck": ("vehicle.moving", "vehicle.parked"),
    "construction_vehicle": ("vehicle.moving", "vehicle.parked"),
    "trailer": ("vehicle.moving", "vehicle.parked"),
    "bus": ("vehicle.moving", "vehicle.stopped"),
    "motorcycle": ("cycle.with_rider", "cycle.without_rider"),
    "bicycle": ("cycle.with_rider", "cycle.without_rider"),
    "pedestrian": ("pedestrian.moving", "pedestrian.standing"),
}


def detection_name(category: str) -> str | None:
    """Detection class of a category name; None for categories that are not scored."""
    return CATEGORY_TO_DETECTION.get(category)


def attribute_name(name: str, speed: float) -> str:
    """Attribute of a box by its class and speed (m/s); empty for cones, barriers and others."""
    moving, resting = _ATTRIBUTES.get(name, ("", ""))
    return moving if speed > MOVING_SPEED else resting
