"""A mean that follows what changes."""

WEIGHT = 0.5
"""Of the newest value."""


class RunningMean:
    """The mean of a few values, of which the latest count most."""

    def __init__(self) -> None:
        self.value = 0.0
        self.count = 0
        """Of values so far."""

    def add(self, value: float) -> None:
        """Take one in."""
        self.count += 1
        self.value = value if self.count == 1 else self.value + WEIGHT * (value - self.value)
