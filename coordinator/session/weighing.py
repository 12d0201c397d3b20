"""Whose model and whose state a session begins with, where what a device brings is not what the session has.

The first device's are the session's unless most of the awaited devices agree on others. An operator who names a device,
or the session's record, is asked first.
"""

from enum import Enum, auto

from coordinator.session.admission import Admission
from coordinator.session.gathering import Gathering
from coordinator.session.members import Joining
from coordinator.session.refusal import RefusedError, Status, UndecidedError
from coordinator.session.settings import SessionSettings


class Verdict(Enum):
    """What becomes of what a device brings."""

    STANDS_ALONE = auto()
    """Nothing: it is as the session has it, or the device has to do with what the session has."""
    HAS_THE_MODEL = auto()
    """Most have its model and options, which are not the session's."""
    HAS_THE_STEP = auto()
    """Most have a state of its step, which is later than what the session knows."""


class Weighing:
    """Compares what devices bring with what the session has, while it gathers.

    Args:
        session: its name.
        settings: its settings.
        gathering: who has come, and who waits.

    """

    def __init__(self, session: str, settings: SessionSettings, gathering: Gathering) -> None:
        self._session = session
        self._settings = settings
        self._gathering = gathering

    def weigh(self, joining: Joining, admission: Admission, known_step: int | None, now: float) -> Verdict:
        """Return what becomes of what a device brings.

        Args:
            joining: the device.
            admission: the session's model and options.
            known_step: the latest step that the session knows, if the device says to be further.
            now: the time.

        Raises:
            UndecidedError: it has to wait for what others bring.
            RefusedError: it has waited for the device whose model the session is to have, or too many wait already.

        """
        awaits_model = admission.awaits_model_before(joining.device)
        difference = "" if admission.is_settled else admission.difference(joining)
        claims, needed = self._gathering.claims, self._gathering.majority
        if not awaits_model and not difference and known_step is None:
            claims.withdraw(joining.device)
            return Verdict.STANDS_ALONE
        is_new = claims.note(joining, 2 * self._gathering.expected, now)
        if not awaits_model and difference and claims.with_model_of(joining) >= needed:
            return Verdict.HAS_THE_MODEL
        if not awaits_model and not difference and self.state_of_most(joining) is not None:
            return Verdict.HAS_THE_STEP
        if claims.is_out_of_time(joining.device, now) or not self._may_become_most(joining.device, awaits_model):
            claims.withdraw(joining.device)
            if awaits_model:
                wait = f"{self._settings.join_deadline_s:g} s"
                raise RefusedError(
                    Status.FAILED_PRECONDITION,
                    f"device {joining.device!r} cannot join session {self._session!r}: device "
                    f"{self._settings.model_of!r}, whose model it is to have (--model-of), did not come in {wait}",
                )
            return Verdict.STANDS_ALONE
        raise UndecidedError(self._what_it_waits_for(joining, difference, known_step), is_new=is_new)

    def state_of_most(self, joining: Joining) -> Joining | None:
        """Return the device with whose state the session is to go on, if most have come with the step of this one."""
        gathering = self._gathering
        return gathering.claims.state_of_most(
            joining, gathering.majority, are_all_here=gathering.has_come + len(gathering.claims) >= gathering.expected
        )

    def _may_become_most(self, device: str, awaits_model: bool) -> bool:
        return awaits_model or self._gathering.may_be_outvoted_without(device)

    def _what_it_waits_for(self, joining: Joining, difference: str, known_step: int | None) -> str:
        who = f"device {joining.device!r} waits to join session {self._session!r}"
        others = f"{self._gathering.majority} of the {self._gathering.expected} awaited devices"
        if difference:
            return f"{who}: {difference}; what {others} have becomes the session's"
        if known_step is not None:
            return (
                f"{who}: it comes with a state of step {joining.next_step}, and the session knows nothing beyond step "
                f"{known_step}; what {others} come with becomes the session's"
            )
        return f"{who}: device {self._settings.model_of!r}, whose model it is to have (--model-of), has not come"


def refused_as_ahead(joining: Joining, session: str, known_step: int) -> RefusedError:
    """Return the refusal of a device that comes with a state of a later step than its session knows."""
    return RefusedError(
        Status.FAILED_PRECONDITION,
        f"device {joining.device!r} cannot join session {session!r}: it comes with a state of step "
        f"{joining.next_step}, but the session knows nothing beyond step {known_step}. To go on from there, start the "
        f"coordinator with the session's --record and --resume, or with --trust-state-of {joining.device}, whose state "
        "all others take over then; or start the device without its state",
    )
