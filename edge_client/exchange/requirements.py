"""What a device insists on: a session that does not give it is not joined."""

import re
from collections.abc import Sequence

from edgenewton.v1 import exchange_pb2 as pb

from edge_client.exchange.errors import Cause, ExchangeError

_MASKED = "secure-aggregation"
_FORMS = f"{_MASKED}, or {_MASKED}>=N for sums of at least N devices"
_PATTERN = re.compile(rf"{_MASKED}(?:>=([0-9]{{1,6}}))?")


class RequirementError(ValueError):
    """A text that is no requirement."""


def check_requirements(required: Sequence[str]) -> None:
    """Check that requirements can be understood.

    Raises:
        RequirementError: one of them cannot; the text says what can.

    """
    for text in required:
        _least(text)


def check_evaluation(required: Sequence[str]) -> None:
    """Check that a device may say, outside of a session, how good a model is on its own samples: nothing masks that.

    Raises:
        RequirementError: it insists on masks; the text says how the model is tried under them.

    """
    text = next((text for text in required if text.strip().startswith(_MASKED)), None)
    if text is not None:
        raise RequirementError(
            f"this device insists on {text}, and its accuracy on its own samples would leave in clear: run with "
            "fraction-evaluate=0; evaluate-every=20 tries the model under masks, every 20 steps"
        )


def check_settings(required: Sequence[str], settings: pb.ExchangeSettings, device: str, session: str) -> None:
    """Check that a session gives what a device insists on.

    Args:
        required: what it insists on, such as `secure-aggregation>=5`.
        settings: of the session, as its coordinator told them.
        device: its id.
        session: name of the session.

    Raises:
        ExchangeError: it does not.

    """
    for text in required:
        least = _least(text)
        refusal = f"device {device!r} insists on {text}, and session {session!r}"
        if not settings.HasField("secure_aggregation"):
            raise ExchangeError(
                f"{refusal} has no secure aggregation: its coordinator would see what each device sends. Open it with "
                "--secure-aggregation, or train without --require",
                Cause.REFUSED,
            )
        if settings.secure_aggregation.least < least:
            raise ExchangeError(
                f"{refusal} gives away sums of {settings.secure_aggregation.least} devices; open it with a --quorum of "
                f"{least}, or ask for less",
                Cause.REFUSED,
            )


def _least(text: str) -> int:
    found = _PATTERN.fullmatch(text.strip())
    if found is None:
        raise RequirementError(f"{text!r} is nothing that can be required: {_FORMS}")
    return max(2, int(found[1] or 0))
