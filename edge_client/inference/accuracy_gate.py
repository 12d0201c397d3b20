"""The gate of promotion: a new version must not recognise worse than the one that serves."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AccuracyGate:
    """Lets a version pass if its accuracy is at most `margin` below the serving one's, on the same samples."""

    margin: float

    def refusal(self, candidate: float | None, serving: float | None) -> str | None:
        """Return why a version with accuracy `candidate` may not serve, or None if it may.

        Without held-out samples, accuracies are None, and every version may.
        """
        if serving is None or candidate is None or candidate >= serving - self.margin:
            return None
        return (
            f"its accuracy is {candidate:.1%} on this device's held-out samples, the serving version's {serving:.1%}; "
            f"it may be {self.margin:.1%} below"
        )
