"""What an accelerometer and a gyroscope measure on a body that moves: six motions, from their equations.

An accelerometer measures specific force, acceleration minus gravity, in its own axes: 9.81 m/s^2 upwards at rest, and
nothing in free fall. All formulas are those of point masses and rigid bodies in any textbook of mechanics. Each
function returns specific force (m/s^2) and angular velocity (rad/s) in the body's axes, float64 `[LENGTH, 3]` each.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Motion = Callable[[np.random.Generator], tuple[Array, Array]]

RATE = 50
"""Measurements per second."""
LENGTH = 128
"""Measurements in a window: 2.56 s."""
GRAVITY = 9.81

_SUBSTEPS = 5
_TIME = np.arange(LENGTH) / RATE


def rest(_: np.random.Generator) -> tuple[Array, Array]:
    """Lie still: f = g upwards."""
    return _along_z(np.full(LENGTH, GRAVITY)), np.zeros((LENGTH, 3))


def swing(rng: np.random.Generator) -> tuple[Array, Array]:
    """Hang on a cord of length L: a'' = -(g / L) sin a - c a'. The bob feels the cord alone: f = g cos a + L a'^2."""
    length, damping = rng.uniform(0.25, 1.2), rng.uniform(0.0, 0.3)
    angles, rates = _integrate(
        lambda a, w: -GRAVITY / length * math.sin(a) - damping * w,
        rng.uniform(0.35, 1.2) * rng.choice([-1, 1]),
        rng.uniform(-1.0, 1.0),
    )
    force = _along_z(GRAVITY * np.cos(angles) + length * rates**2)
    force[:, 0] = -length * damping * rates  # along the path: drag
    turning = np.zeros((LENGTH, 3))
    turning[:, 1] = rates
    return force, turning


def spin(rng: np.random.Generator) -> tuple[Array, Array]:
    """Turn on a table at radius r: f = g upwards and W^2 r inwards; friction slows it, W' = -k W."""
    radius, rate, friction = rng.uniform(0.02, 0.15), rng.uniform(4.0, 14.0), rng.uniform(0.0, 0.4)
    rates = rate * np.exp(-friction * _TIME) * rng.choice([-1, 1])
    force = _along_z(np.full(LENGTH, GRAVITY))
    force[:, 0] = -(rates**2) * radius
    force[:, 1] = -friction * rates * radius
    turning = np.zeros((LENGTH, 3))
    turning[:, 2] = rates
    return force, turning


def bounce(rng: np.random.Generator) -> tuple[Array, Array]:
    """Hang on a spring: z'' = -k z - c z'; f = g + z''."""
    stiffness, damping = (2 * np.pi * rng.uniform(1.0, 3.0)) ** 2, rng.uniform(0.0, 0.8)
    heights, rates = _integrate(
        lambda z, w: -stiffness * z - damping * w, rng.uniform(0.03, 0.12) * rng.choice([-1, 1]), 0.0
    )
    return _along_z(GRAVITY - stiffness * heights - damping * rates), np.zeros((LENGTH, 3))


def fall(rng: np.random.Generator) -> tuple[Array, Array]:
    """Fall from a height h, tumbling: nothing for sqrt(2 h / g), then impacts that keep a part e of the speed."""
    height, kept = rng.uniform(0.3, 1.3), rng.uniform(0.2, 0.5)
    contact_s = rng.uniform(0.03, 0.06)
    force = np.full(LENGTH, GRAVITY)
    turning = np.zeros((LENGTH, 3))
    tumbling = rng.normal(0, 2.0, 3)
    now = rng.uniform(0.1, 0.7)
    speed = np.sqrt(2 * GRAVITY * height)
    flight_s = speed / GRAVITY
    while speed > 0.4:
        flying = (now <= _TIME) & (now + flight_s > _TIME)
        force[flying], turning[flying] = 0.0, tumbling
        now += flight_s
        touching = (now <= _TIME) & (now + contact_s > _TIME)
        # A half-sine pulse that changes the speed from -v to e v: its mean is (1 + e) v / contact time.
        pulse = np.pi / 2 * (1 + kept) * speed / contact_s * np.sin(np.pi * (_TIME - now) / contact_s)
        force[touching] = GRAVITY + pulse[touching]
        now += contact_s
        speed *= kept
        tumbling = tumbling * kept
        flight_s = 2 * speed / GRAVITY
    return _along_z(force), turning


def roll(rng: np.random.Generator) -> tuple[Array, Array]:
    """Roll down a slope inside a cylinder: W' = g sin s / (1.5 R), at radius r; gravity turns around the sensor."""
    radius, place, slope = rng.uniform(0.05, 0.2), rng.uniform(0.0, 0.8), rng.uniform(0.0, 0.15)
    acceleration = GRAVITY * np.sin(slope) / (1.5 * radius)
    direction = rng.choice([-1, 1])
    rates = rng.uniform(2.0, 8.0) + acceleration * _TIME
    angles = rng.uniform(0, 2 * np.pi) + np.cumsum(rates) / RATE
    rates, angles = direction * rates, direction * angles
    linear = acceleration * radius * direction
    # In axes that do not turn: gravity's reaction, and the acceleration of the cylinder's centre.
    along, up = linear, GRAVITY
    force = np.zeros((LENGTH, 3))
    force[:, 0] = along * np.cos(angles) - up * np.sin(angles) - rates**2 * place * radius
    force[:, 2] = along * np.sin(angles) + up * np.cos(angles)
    turning = np.zeros((LENGTH, 3))
    turning[:, 1] = rates
    return force, turning


MOTIONS: dict[str, Motion] = {"rest": rest, "swing": swing, "spin": spin, "bounce": bounce, "fall": fall, "roll": roll}


def _along_z(values: Array) -> Array:
    vectors = np.zeros((LENGTH, 3))
    vectors[:, 2] = values
    return vectors


def _integrate(acceleration: Callable[[float, float], float], place: float, speed: float) -> tuple[Array, Array]:
    """Return place and speed at each measurement, by the velocity Verlet method with `_SUBSTEPS` per measurement."""
    step = 1 / (RATE * _SUBSTEPS)
    x, v = place, speed
    places, speeds = np.empty(LENGTH), np.empty(LENGTH)
    for index in range(LENGTH):
        places[index], speeds[index] = x, v
        for _ in range(_SUBSTEPS):
            before = acceleration(x, v)
            x = x + v * step + before * (step * step / 2)
            v = v + (before + acceleration(x, v + before * step)) * (step / 2)
    return places, speeds
