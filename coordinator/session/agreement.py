"""What all devices of a step must do alike, and who is refused if they differ: most decide, not who comes first."""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from edgenewton.v1.framing import SliceKey

from coordinator.session.batches import batches_difference
from coordinator.session.hyperparameters import hyperparameters_difference

Word = TypeVar("Word")


@dataclass
class _Camp(Generic[Word]):
    """Devices that say exactly the same."""

    word: Word
    devices: set[str] = field(default_factory=set)


class Question(Generic[Word]):
    """One thing that all devices must do alike, and what each says that it does.

    Args:
        difference: tells in words in which way a device's word differs from that of others, who are named; nothing if
            they are alike.
        usual: what was agreed on in the step before, if anything.

    """

    def __init__(self, difference: Callable[[Word, Word, str], str], usual: Word | None) -> None:
        self._difference = difference
        self._usual = usual
        self._camps: list[_Camp[Word]] = []

    @property
    def agreed(self) -> Word | None:
        """What is agreed on, once nobody differs any more; what was usual if nobody says anything."""
        return self._camps[0].word if self._camps else self._usual

    @property
    def is_disputed(self) -> bool:
        """Whether there is no word that suits all."""
        words = [camp.word for camp in self._camps]
        return len(words) > 1 and not any(all(self._are_alike(one, other) for other in words) for one in words)

    def answer(self, device: str, word: Word) -> None:
        """Note what a device says; its latest word counts."""
        self.forget(device)
        for camp in self._camps:
            if camp.word == word:
                camp.devices.add(device)
                return
        self._camps.append(_Camp(word, {device}))

    def forget(self, device: str) -> None:
        """Forget what a device said."""
        for camp in self._camps:
            camp.devices.discard(device)
        self._camps = [camp for camp in self._camps if camp.devices]

    def outvoted(self, voters: AbstractSet[str], awaited: int, *, is_final: bool) -> dict[str, str]:
        """Return who differs from most, and how, in words; nobody as long as it cannot be said who most are.

        Args:
            voters: the devices whose word counts.
            awaited: how many more are to come: as long as they could turn it, nothing is decided.
            is_final: nobody is waited for any longer. Of words that equally many say, that counts which was agreed on
                in the step before; or else the first.

        """
        if not self.is_disputed:
            return {}
        votes = [len(camp.devices & voters) for camp in self._camps]
        support = [
            sum(
                count for count, other in zip(votes, self._camps, strict=True) if self._are_alike(camp.word, other.word)
            )
            for camp in self._camps
        ]
        ranks = [
            (count, self._usual is not None and self._are_alike(camp.word, self._usual))
            for count, camp in zip(support, self._camps, strict=True)
        ]
        best = ranks.index(max(ranks))
        most = self._camps[best].word
        others = [camp for camp in self._camps if not self._are_alike(camp.word, most)]
        rival = max(count for count, camp in zip(support, self._camps, strict=True) if camp in others)
        if not is_final and support[best] - rival <= awaited:
            return {}
        who = _names([device for camp in self._camps if camp not in others for device in camp.devices])
        return {device: self._difference(camp.word, most, who) for camp in others for device in camp.devices}

    def _are_alike(self, one: Word, other: Word) -> bool:
        return not self._difference(one, other, "")


@dataclass(frozen=True)
class Agreed:
    """What the devices of a step agreed on; None of what nobody said."""

    batches: int | None = None
    hyperparameters: Mapping[str, float] | None = None
    slices: AbstractSet[SliceKey] | None = None


class Agreement:
    """What the complete devices of one step say of what all must do alike.

    Args:
        name_of: names the tensor of a slice, for a user.
        usual: what was agreed on in the step before.

    """

    def __init__(self, name_of: Callable[[SliceKey], str], usual: Agreed) -> None:
        def slices_difference(ours: AbstractSet[SliceKey], theirs: AbstractSet[SliceKey], who: str) -> str:
            if ours == theirs:
                return ""
            differing = min(ours ^ theirs)
            return f"it and {who} differ in whether they sent the {name_of(differing)} (slice at {differing.offset})"

        self._batches = Question(batches_difference, usual.batches)
        self._hyperparameters = Question(hyperparameters_difference, usual.hyperparameters)
        self._slices = Question(slices_difference, usual.slices)

    @property
    def is_disputed(self) -> bool:
        """Whether devices differ, so that the step cannot be committed."""
        return self._batches.is_disputed or self._hyperparameters.is_disputed or self._slices.is_disputed

    @property
    def agreed(self) -> Agreed:
        """What is agreed on, once nobody differs any more."""
        return Agreed(self._batches.agreed, self._hyperparameters.agreed, self._slices.agreed)

    def answer(
        self, device: str, batches: int, hyperparameters: Mapping[str, float], slices: AbstractSet[SliceKey]
    ) -> None:
        """Note what a device says that has completed its contribution; without hyperparameters it suits all."""
        self._batches.answer(device, batches)
        if hyperparameters:
            self._hyperparameters.answer(device, dict(hyperparameters))
        else:
            self._hyperparameters.forget(device)
        self._slices.answer(device, frozenset(slices))

    def forget(self, device: str) -> None:
        """Forget what a device said."""
        for question in (self._batches, self._hyperparameters, self._slices):
            question.forget(device)

    def outvoted(self, voters: AbstractSet[str], awaited: int, *, is_final: bool) -> dict[str, str]:
        """Return who differs from most, and how: see `Question.outvoted`."""
        found: dict[str, str] = {}
        for question in (self._batches, self._hyperparameters, self._slices):
            found = question.outvoted(voters - found.keys(), awaited, is_final=is_final) | found
        return found


def _names(devices: list[str]) -> str:
    others = len(devices) - 1
    return f"device {min(devices)!r}" + (f" and {others} other{'s' if others > 1 else ''}" if others else "")
