"""The steps of a session with secure aggregation: when masks are agreed on, and how the sum is unmasked."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from edgenewton.secure_aggregation.contribution_form import (
    NUMBERS_STREAM,
    ContributionForm,
    Totals,
    all_slices,
    digest_of_terms,
    key_hint,
    may_be_rounded,
    scales_by_slice,
    stream_of,
)
from edgenewton.secure_aggregation.errors import SecureAggregationError
from edgenewton.secure_aggregation.fixed_point import Float32Array, Scales
from edgenewton.secure_aggregation.messages import (
    revealed_from_proto,
    scales_to_bytes,
    set_to_bytes,
    step_keys_from_proto,
)
from edgenewton.secure_aggregation.modular_integers import Integers, WidthError, unpack
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.framing import Layout, Slice, SliceKey
from edgenewton.v1.tensor_spec import TensorSpec

from coordinator.session.decisions import Decision, KeysWanted, MaskersSettled, SharesWanted
from coordinator.session.keys_ahead import KeysAhead
from coordinator.session.masked_round import MaskedRound, MaskingPhase
from coordinator.session.members import Standing
from coordinator.session.robust.step_rule import Held, StepOutcome
from coordinator.session.roster import Roster
from coordinator.session.settings import SessionSettings
from coordinator.session.step import Contribution, Step

PATIENCE_S = 2.0
"""Once enough devices have sent keys, the others have so much time from the question on."""


class MaskedSteps:
    """What a session does otherwise if its devices mask.

    Args:
        session: its name.
        settings: of the session.

    """

    def __init__(self, session: str, settings: SessionSettings) -> None:
        self._session, self._settings = session, settings
        self._round: MaskedRound | None = None
        self._of: Step | None = None
        self._since = 0.0
        self._attempts = 0
        self._layout: Layout | None = None
        self._scales: dict[SliceKey, Scales] = {}
        self._ahead = KeysAhead(session)
        self._channel_keys: dict[str, pb.ChannelKey | None] = {}
        """Of each device of the circle, as the round began: by another it would be a device that was started again."""
        self._written: list[bytes] = []
        """The scales of the step that is on, for each slice."""
        self.form: ContributionForm | None = None
        """How the contributions to the step that is on are written, once it is settled who masks."""

    @property
    def is_settled(self) -> bool:
        """Whether it is settled whose contributions are summed up."""
        return self._round is not None and self._round.phase is MaskingPhase.SHARES

    @property
    def least_contributions(self) -> int:
        """Of how many devices the sum of the step that is on must be."""
        return self._settings.required if self._round is None else self._round.least_contributions

    def is_late(self, device: str) -> bool:
        """Whether what a device contributes now can no more be in the sum."""
        return self._round is not None and self.is_settled and device not in self._round.contributed

    def may_mask(self, device: str) -> bool:
        """Whether the contribution of a device to the step that is on can be in the sum."""
        return self._round is not None and self._round.may_mask(device) and not self.is_late(device)

    def is_masked_with(self, device: str, hint: bytes) -> bool:
        """Whether what a device contributed is masked with its key of this round; that of another is of no use."""
        of = self._round
        return of is not None and device in of.maskers and key_hint(of.keys[device].public) == hint

    def advance(self, step: Step, members: Roster, fingerprint: tuple[TensorSpec, ...], now: float) -> list[Decision]:
        """Begin a round if a step has none, and settle who masks once their keys are here."""
        of = self._round
        if of is None or self._of is not step:
            return self._begin(step, members, fingerprint, now)
        if of.phase is not MaskingPhase.KEYS:
            return []
        awaited = (set(of.circle) & members.keys()) - of.declined
        has_enough = len(of.keys) >= max(of.needed, self._settings.required)
        if has_enough and (of.keys.keys() >= awaited or now >= self._since + PATIENCE_S):
            return self._settle_maskers(of)
        is_hopeless = len(awaited) < of.needed or self._is_over(now)
        if not is_hopeless and all(self._has_same_key(device, members) for device in awaited):
            return []
        return [] if of.declined else self._begin(step, members, fingerprint, now)

    def left_behind(self, members: Roster) -> list[str]:
        """Return the devices that the step cannot wait for: they do not mask, or were started again since."""
        of = self._round
        if of is None or of.phase is not MaskingPhase.CONTRIBUTIONS:
            return []
        active = members.standing(Standing.ACTIVE)
        return [device for device in active if device not in of.maskers or not self._has_same_key(device, members)]

    def is_lost(self, step: Step, members: Roster, now: float) -> bool:
        """Whether the step cannot have a sum any more: too few are left whose contributions, or shares, could come.

        It does not begin anew: a device that masks twice in a step could have its contribution in two sums.
        """
        of = self._round
        if of is None or self._of is not step or of.is_unmasked:
            return False
        present = set(of.circle) & set(members)
        match of.phase:
            case MaskingPhase.KEYS if of.declined:
                may_come = {device for device in present - of.declined if self._has_same_key(device, members)}
                possible = of.keys.keys() if self._is_over(now) else of.keys.keys() | may_come
                return len(possible) < max(of.needed, self._settings.required)
            case MaskingPhase.KEYS:
                return False  # the round begins anew
            case MaskingPhase.CONTRIBUTIONS:
                may_come = {device for device in set(of.maskers) & present if self._has_same_key(device, members)}
                possible = step.contributions.keys() | may_come
                return len(possible) < max(of.least_contributions, self._settings.required)
            case MaskingPhase.SHARES:
                return self._is_over(now) or len(set(of.maskers) & present) < of.needed

    def ask(self, contributed: Collection[str], now: float) -> list[Decision]:
        """Settle whose contributions are summed up, and ask for what unmasks the sum."""
        assert self._round is not None
        self._round.ask(contributed)
        self._since = now
        return [SharesWanted(self._round.step, self._round)]

    @property
    def is_unmasked(self) -> bool:
        """Whether enough was revealed."""
        return self._round is not None and self._round.is_unmasked

    def again(self, device: str, members: Roster) -> list[Decision]:
        """Return what a device is to be told that has joined again: what it was told may be lost."""
        of = self._round
        if of is None or device not in of.circle or not self._has_same_key(device, members):
            return []
        if of.phase is MaskingPhase.KEYS:
            return [KeysWanted(of.step, self._channel_keys, of.attempt, only=(device,))]
        if device not in of.maskers:
            return []
        settled: list[Decision] = [MaskersSettled(of.step, of, self._written, only=(device,))]
        return [*settled, SharesWanted(of.step, of, only=(device,))] if of.phase is MaskingPhase.SHARES else settled

    def take_keys(self, device: str, step: int, message: pb.StepKeys) -> None:
        """Take a device's keys, or that it has none; those of another step, or another attempt, come too late.

        Raises:
            SecureAggregationError: they are not for just its neighbours.

        """
        of = self._round
        if of is None or (step, message.attempt) != (of.step, of.attempt) or device not in of.circle:
            return
        if not message.public:
            of.decline(device)
        else:
            of.take_keys(device, step_keys_from_proto(device, of.neighbours(device), message))

    def take_keys_ahead(self, device: str, step: int, message: pb.StepKeys) -> None:
        """Take a device's keys for a step to come.

        Raises:
            SecureAggregationError: they are not for as many neighbours as it has.

        """
        if self._round is not None:
            self._ahead.take(device, self._round, step, message)

    def take_revealed(self, device: str, step: int, message: pb.Revealed) -> None:
        """Take what a device reveals; what is about other keys comes too late.

        Raises:
            SecureAggregationError: it is not what it was asked for.

        """
        of = self._round
        is_asked = of is not None and step == of.step and of.phase is MaskingPhase.SHARES and device in of.maskers
        if of is not None and is_asked and message.public == of.keys[device].public:
            of.take_revealed(device, revealed_from_proto(device, *of.held_by(device), message))

    def read(self, piece: Slice, payload: memoryview) -> Integers:
        """Return the masked integers of a slice.

        Raises:
            ValueError: they are not as many, or nobody masks yet.

        """
        if self.form is None:
            raise ValueError(f"the {piece.spec} came before it was settled who masks")
        try:
            return unpack(bytes(payload), piece.length, self.form.of(piece).sum_bits)
        except WidthError as error:
            raise ValueError(f"the {piece.spec}: {error}") from None

    def read_numbers(self, data: bytes) -> Integers:
        """Return the masked numbers beside a contribution.

        Raises:
            ValueError: they are not as many, or nobody masks yet.

        """
        if self.form is None:
            raise ValueError("a contribution came before it was settled who masks")
        return unpack(data, self.form.numbers_length, self.form.numbers.sum_bits)

    def combine(
        self, slices: Mapping[SliceKey, Sequence[Held]], contributions: Mapping[str, Contribution]
    ) -> StepOutcome:
        """Return the means of a step with what all contributions say together; or whose fault it is that none are."""
        assert self._round is not None
        assert self.form is not None
        try:
            return self._combine(self._round, self.form, slices, contributions)
        except SecureAggregationError as error:
            return StepOutcome(fault=(error.device, error.reason))

    # ------------------------------------------------------------------ inner workings

    def _combine(
        self,
        of: MaskedRound,
        form: ContributionForm,
        slices: Mapping[SliceKey, Sequence[Held]],
        contributions: Mapping[str, Contribution],
    ) -> StepOutcome:
        numbers = [contributions[device].numbers for device in sorted(of.contributed)]
        summed = of.sum_of(NUMBERS_STREAM, [each for each in numbers if each is not None], form.numbers)
        totals = Totals.from_vector(summed)
        if any(spec.kind == "noised" for spec in form.layout.fingerprint):
            totals = replace(totals, loss=math.nan)  # a device with a privacy budget tells none
        outcome = StepOutcome(totals=totals)
        for piece in all_slices(form.layout):
            held = [each.values for each in slices.get(piece.key, ()) if each.device in of.contributed]
            if not held:
                continue
            total = of.sum_of(stream_of(piece.key), held, form.of(piece))
            outcome.values[piece.key] = (total / max(1, totals.samples)).astype(np.float32, copy=False)
            if may_be_rounded(piece.spec.kind) and totals.samples:
                clipped = totals.clipped[piece.key.tensor] * piece.length / max(1, piece.spec.size)
                self._scales.setdefault(piece.key, Scales()).update(total, len(numbers), clipped)
        return outcome

    def _begin(self, step: Step, members: Roster, fingerprint: tuple[TensorSpec, ...], now: float) -> list[Decision]:
        self._round = self.form = None
        circle = members.standing(Standing.ACTIVE, Standing.LAGGING)
        if len(circle) < max(2, self._settings.required):
            return []
        if self._layout is None or self._layout.fingerprint != fingerprint:
            choice = self._settings.codec_choice
            self._layout = Layout(fingerprint, choice.masked_policy(), self._settings.frame_bytes)
            self._scales = {}
        self._of, self._since = step, now
        self._attempts += 1
        self._channel_keys = {device: members[device].joining.channel_key for device in sorted(circle)}
        publics = {device: _public(key) for device, key in self._channel_keys.items()}
        self._round = of = self._ahead.begin(step.number, publics, self._attempts)
        asked = [device for device in of.circle if device not in of.keys]
        if asked:
            return [KeysWanted(step.number, self._channel_keys, self._attempts, only=tuple(asked))]
        return self._settle_maskers(of)

    def _settle_maskers(self, of: MaskedRound) -> list[Decision]:
        assert self._layout is not None
        of.close_keys()
        self._written = [scales_to_bytes(self._current_scales(piece)) for piece in all_slices(self._layout)]
        # As the devices read them: rounded to bf16.
        scales = scales_by_slice(self._layout, self._written)
        bits, least = self._settings.mask_bits, self._settings.least_in_sum
        maskers = set_to_bytes(of.circle, of.maskers)
        of.told = digest_of_terms(bits, least, of.circle, maskers, self._written)
        self.form = ContributionForm(self._layout, bits, len(of.maskers), scales)
        return [MaskersSettled(of.step, of, self._written)]

    def _is_over(self, now: float) -> bool:
        """Whether nobody is waited for any longer who did not say in this phase what he was asked for."""
        return now >= self._since + self._settings.step_deadline_s

    def _has_same_key(self, device: str, members: Roster) -> bool:
        return device in members and _public(members[device].joining.channel_key) == _public(
            self._channel_keys.get(device)
        )

    def _current_scales(self, piece: Slice) -> Float32Array | None:
        known = self._scales.get(piece.key)
        return None if known is None else known.current


def _public(key: pb.ChannelKey | None) -> bytes:
    return b"" if key is None else key.public
