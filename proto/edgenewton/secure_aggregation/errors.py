"""What is wrong with a message of secure aggregation, and whose it is."""


class SecureAggregationError(ValueError):
    """A device, or the coordinator, broke the protocol; the text names it.

    Args:
        device: whose message is wrong; empty for the coordinator's.
        reason: what is wrong with it, as a sentence without its subject.

    """

    def __init__(self, device: str, reason: str) -> None:
        self.device, self.reason = device, reason
        super().__init__(f"{f'device {device!r}' if device else 'the coordinator'} {reason}")
