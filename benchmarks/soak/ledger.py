"""What honest devices have seen, held against what the session has committed.

A device writes a trace, a line for each thing that happens to it:

    J 17          it joins with a state that lacks step 17 and what follows; "J -" with a state that was not trained
    H 20          it has loaded the state of another device, which lacks step 20 and what follows
    M 20          it is a member, and step 20 comes next
    A 20 1f00cafe it has applied step 20; its weights then have this checksum
    L             it leaves, of its own will
    E text        its stay ended, and it did not want that

A stay begins with J. It ends with L or E, or with the trace's end or the next J if its process was killed. An honest
step is lost if

- the session committed it while the device was a member, from M to the end of its stay, and the device has neither
  applied it nor loaded a state that contains it: a gap in what it acknowledges;
- a device has applied a step that the session did not commit, or one that another device has applied with another
  outcome: each such step counts once;
- a stay ended with E: the steps count that the session committed until the device was a member again, and at least one.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass
class Account:
    """What became of the honest devices' steps."""

    stays: int = 0
    killed: int = 0
    """Stays that ended without a word."""
    acknowledged: int = 0
    """Steps that members have applied, or that were in a state that they loaded. Who comes back with an older state
    catches up with steps that it acknowledged in an earlier stay, and counts them again."""
    heals: int = 0
    lost: int = 0
    problems: list[str] = field(default_factory=list)
    """A sentence for each loss."""

    def lose(self, count: int, problem: str) -> None:
        """Count lost steps."""
        self.lost += count
        self.problems.append(problem)


def settle(traces: Mapping[str, Iterable[str]], committed: Iterable[int]) -> Account:
    """Return the account of all traces.

    Args:
        traces: each device's lines.
        committed: the steps that the session has committed, in order, as those who watch are told.

    """
    account, steps = Account(), list(committed)
    known = set(steps)
    for before, after in itertools.pairwise(steps):
        if after != before + 1:
            account.lose(1, f"the session committed step {after} after step {before}")
    outcomes: dict[int, set[str]] = {}
    for device, lines in traces.items():
        _Stays(device, known, outcomes, account).read(lines)
    for step in sorted(outcomes):
        if step not in known:
            account.lose(1, f"step {step} was applied, but the session did not commit it")
        elif len(outcomes[step]) > 1:
            account.lose(1, f"step {step} has {len(outcomes[step])} outcomes")
    return account


class _Stays:
    """Reads one device's trace."""

    def __init__(self, device: str, committed: set[int], outcomes: dict[int, set[str]], account: Account) -> None:
        self._device = device
        self._committed = committed
        self._outcomes = outcomes
        self._account = account
        self._next: int | None = None
        """The step that the device's state lacks; None if it has none yet."""
        self._is_member = False
        self._is_staying = False
        self._thrown_out_at: int | None = None

    def read(self, lines: Iterable[str]) -> None:
        for line in lines:
            kind, _, rest = line.rstrip("\n").partition(" ")
            match kind, rest.split():
                case "", []:
                    pass  # each process begins with an empty line, behind what the one before it may have left
                case "J", [step]:
                    self._end(is_killed=self._is_staying)
                    self._account.stays += 1
                    self._is_staying = True
                    self._next = None if step == "-" else int(step)
                case "H", [step]:
                    self._load(int(step))
                case "M", [step]:
                    self._enter(int(step))
                case "A", [step, checksum] if len(checksum) == 8:
                    self._apply(int(step), checksum)
                case "L", _:
                    self._end(is_killed=False)
                case "E", _:
                    self._account.lose(1, f"{self._device}: {rest}")
                    self._thrown_out_at = self._next if self._is_member else None
                    self._end(is_killed=False)
                case _:  # a process that was killed while it wrote leaves a part of a line, and that is its last
                    self._end(is_killed=True)
        self._end(is_killed=self._is_staying)

    def _end(self, *, is_killed: bool) -> None:
        self._account.killed += is_killed
        self._is_staying = self._is_member = False

    def _load(self, step: int) -> None:
        self._account.heals += 1
        if self._is_member and self._next is not None:
            self._account.acknowledged += max(0, step - self._next)
        self._next = step

    def _enter(self, step: int) -> None:
        if self._next is not None:
            self._miss(self._next, step)
        if self._thrown_out_at is not None:
            missed = sum(self._thrown_out_at <= other < step for other in self._committed)
            if missed > 1:  # one was counted when it happened
                self._account.lose(missed - 1, f"{self._device}: {missed} steps went by until it was a member again")
            self._thrown_out_at = None
        self._next, self._is_member = step, True

    def _apply(self, step: int, checksum: str) -> None:
        if self._next is not None:
            self._miss(self._next, step)
        self._outcomes.setdefault(step, set()).add(checksum)
        self._account.acknowledged += self._is_member  # not what it caught up with before it was one
        self._next = step + 1

    def _miss(self, wanted: int, came: int) -> None:
        if came != wanted:
            gap = sum(min(wanted, came) <= step < max(wanted, came) for step in self._committed)
            self._account.lose(max(1, gap), f"{self._device}: step {came} came where step {wanted} was due")
