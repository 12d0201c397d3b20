"""What can go wrong in an exchange, as a user's program meets it."""

from enum import Enum, auto


class Cause(Enum):
    """Why an exchange failed, for programs; the error's text is for people."""

    UNREACHABLE = auto()  # the coordinator does not answer
    REFUSED = auto()  # the coordinator refused this device: version, model, options, id, session
    INVALID = auto()  # this device sent something wrong
    LEFT_OUT = auto()  # the step went on without this device
    ABORTED = auto()  # the session was aborted for everybody
    TIMEOUT = auto()  # a wait of this device ended


class ExchangeError(RuntimeError):
    """The exchange failed; the text names the device and says what to do."""

    def __init__(self, message: str, cause: Cause) -> None:
        super().__init__(message)
        self.cause = cause


class NonFiniteGradientError(ExchangeError):
    """A tensor that was to be sent holds NaN or infinity; names device, tensor and step."""

    def __init__(self, device: str, tensor: str, step: int) -> None:
        super().__init__(
            f"device {device!r}, step {step}: the {tensor} has a value that is not finite; it was not sent. "
            "Lower the learning rate, raise the damping, or look for bad samples in this batch",
            Cause.INVALID,
        )
