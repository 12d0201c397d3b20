"""What counts as a lost step."""

import pytest

from benchmarks.soak.ledger import settle
from benchmarks.soak.memory import growth


def trace(*lines):
    return [line if line else "" for line in ("", *lines)]


WHOLE = trace("J -", "M 0", "A 0 aaaaaaaa", "A 1 bbbbbbbb", "L")


def test_stays_without_gaps_lose_nothing():
    healed = trace("J 1", "H 2", "A 2 cccccccc", "M 3", "A 3 dddddddd", "H 6", "A 6 eeeeeeee", "L", "J 7", "M 7")
    account = settle({"a": WHOLE, "b": healed}, range(8))
    assert (account.lost, account.problems) == (0, [])
    assert (account.stays, account.killed, account.heals) == (3, 1, 2)
    # Step 2 was over when it became a member; steps 4 and 5 were in a state that it loaded.
    assert account.acknowledged == 2 + 1 + 2 + 1


def test_a_killed_process_loses_nothing_and_may_leave_a_part_of_a_line():
    killed = trace("J -", "M 0", "A 0 aaaaaaaa", "A 1 bb", "", "J -", "H 4", "M 4", "A 4 eeeeeeee")
    account = settle({"a": killed}, range(6))
    assert (account.lost, account.stays, account.killed) == (0, 2, 2)


@pytest.mark.parametrize(
    ("lines", "lost", "problem"),
    [
        (("J -", "M 0", "A 0 aaaaaaaa", "A 3 dddddddd", "L"), 2, "step 3 came where step 1 was due"),
        (("J 2", "M 4", "A 4 eeeeeeee", "L"), 2, "step 4 came where step 2 was due"),
        (("J -", "M 0", "A 0 aaaaaaaa", "A 0 aaaaaaaa", "L"), 1, "step 0 came where step 1 was due"),
        (("J -", "M 0", "A 0 aaaaaaaa", "E thrown out"), 1, "thrown out"),
        (("J -", "M 0", "A 0 aaaaaaaa", "E out", "J -", "H 5", "M 5", "L"), 4, "4 steps went by"),
        (("J -", "M 0", "A 0 ffffffff", "L"), 1, "step 0 has 2 outcomes"),
        (("J 9", "M 9", "A 9 99999999", "L"), 1, "step 9 was applied, but the session did not commit it"),
    ],
)
def test_each_loss_is_counted(lines, lost, problem):
    account = settle({"a": WHOLE, "b": trace(*lines)}, range(6))
    assert account.lost == lost
    assert any(problem in told for told in account.problems)


def test_a_session_commits_each_step_once():
    assert settle({}, [0, 1, 1, 2, 4]).lost == 2


def test_growth_is_that_after_the_warm_up():
    samples = [(float(at), 50.0 + at if at < 40 else 100.0 + (at - 40) / 10) for at in range(141)]
    assert growth(samples, 40.0) == pytest.approx(8.5 / 100.75, rel=1e-3)
    assert growth([(at, 80.0) for at, _ in samples], 40.0) == 0
    with pytest.raises(ValueError, match="after the warm-up of 200 s"):
        growth(samples, 200.0)
