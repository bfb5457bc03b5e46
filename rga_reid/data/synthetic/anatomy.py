"""The body: proportions, and the joints of a walking pose.

Person coordinates, in metres: x sideways (to the right in an image of somebody who faces the camera), y up
from the ground, z the way the person faces. Angles are in radians.

Segment lengths are the fractions of stature of Drillis and Contini (1966), as tabulated in Winter,
"Biomechanics and Motor Control of Human Movement", figure 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np

Point = np.ndarray  #: (3,)

HEAD, NECK, TORSO = 0.130, 0.052, 0.288
UPPER_ARM, FOREARM, HAND = 0.186, 0.146, 0.108
THIGH, SHANK, FOOT, ANKLE = 0.245, 0.246, 0.152, 0.039
SHOULDER, HIP = 0.1, 0.050  # joint centres, from the middle
HEEL = 0.25  # share of the foot behind the ankle

KNEE_REST = 0.06
KNEE_SWING = 1.9  # bend of the swinging leg's knee, in strides
KNEE_LEAD = 0.5  # the knee bends most this much before the leg passes under the body
FOOT_FOLLOWS_SHANK = 0.65
ARMS_OUT = 0.10
SHOULDER_SLOPE = 0.32  # how far the joints lie below the base of the neck, in half widths
TWIST = 0.25  # of the shoulders against the stride
HEAD_FORWARD = 0.012


@dataclass(frozen=True)
class Body:
    """What clothes do not change: the height in metres, all else relative to the average."""

    height: float = 1.72
    build: float = 1.0
    leg_length: float = 1.0
    shoulders: float = 1.0
    head: float = 1.0


@dataclass(frozen=True)
class Pose:
    """One moment of a gait; ``stride`` 0 is standing."""

    phase: float = 0.0
    stride: float = 0.4
    arm_swing: float = 0.4
    elbows: tuple[float, float] = (0.3, 0.3)
    lean: float = 0.03


def skeleton(body: Body, pose: Pose) -> dict[str, Point]:
    """The joints by name (``left_knee``, ``chin``, ...), each ``(x, y, z)``; a foot stands at y = 0."""
    points = {"pelvis": np.zeros(3)}
    for side, out in (("left", 1), ("right", -1)):
        points |= _leg(body, pose, side, out)
    ground = min(points[f"{side}_{part}"][1] for side in ("left", "right") for part in ("heel", "toe"))
    points |= _trunk(body, pose)
    for elbow, side, out in zip(pose.elbows, ("left", "right"), (1, -1), strict=True):
        points |= _arm(body, pose, side, out, elbow)
    return {name: point - (0, ground, 0) for name, point in points.items()}


def _swung(angle: float, out: float = 0.0) -> Point:
    """The direction of a limb that hangs down, swung forward by ``angle`` and sideways by ``out``."""
    return np.array([sin(out), -cos(angle) * cos(out), sin(angle) * cos(out)])


def _leg(body: Body, pose: Pose, side: str, out: int) -> dict[str, Point]:
    unit = body.height * body.leg_length
    phase = _phase(pose, out)
    thigh = pose.stride * sin(phase)
    shank = thigh - KNEE_REST - KNEE_SWING * pose.stride * max(0.0, cos(phase + KNEE_LEAD))
    foot = FOOT_FOLLOWS_SHANK * shank
    forward, down = np.array([0.15 * out, sin(foot), cos(foot)]), _swung(foot)

    hip = np.array([out * HIP * body.height * body.build, 0.0, 0.0])
    knee = hip + THIGH * unit * _swung(thigh)
    ankle = knee + SHANK * unit * _swung(shank)
    sole = ankle + ANKLE * body.height * down
    return {
        f"{side}_hip": hip,
        f"{side}_knee": knee,
        f"{side}_ankle": ankle,
        f"{side}_heel": sole - HEEL * FOOT * body.height * forward,
        f"{side}_toe": sole + (1 - HEEL) * FOOT * body.height * forward,
    }


def _trunk(body: Body, pose: Pose) -> dict[str, Point]:
    up = np.array([0.0, cos(pose.lean), sin(pose.lean)])
    torso = TORSO + (1 - body.leg_length) * (THIGH + SHANK)  # short legs go with a long trunk
    shoulders = torso * body.height * up
    chin = shoulders + (NECK * up + [0, 0, HEAD_FORWARD]) * body.height
    return {
        "shoulders": shoulders,
        "chin": chin,
        "crown": chin + HEAD * body.height * body.head * up,
    }


def _arm(body: Body, pose: Pose, side: str, out: int, elbow_bend: float) -> dict[str, Point]:
    swing = -pose.arm_swing * sin(_phase(pose, out))
    half_width = SHOULDER * body.height * body.shoulders
    twist = TWIST * swing
    shoulder = _trunk(body, pose)["shoulders"] + half_width * np.array(
        [out * cos(twist), -SHOULDER_SLOPE, sin(twist)]
    )
    elbow = shoulder + UPPER_ARM * body.height * _swung(swing, out * ARMS_OUT)
    wrist = elbow + FOREARM * body.height * _swung(swing + elbow_bend, out * ARMS_OUT / 2)
    fingers = wrist + 0.75 * HAND * body.height * _swung(swing + elbow_bend + 0.1)
    return {
        f"{side}_shoulder": shoulder,
        f"{side}_elbow": elbow,
        f"{side}_wrist": wrist,
        f"{side}_fingers": fingers,
    }


def _phase(pose: Pose, out: int) -> float:
    return pose.phase if out > 0 else pose.phase + pi
