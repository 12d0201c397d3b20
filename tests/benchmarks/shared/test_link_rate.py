import pytest

from benchmarks.shared.link_rate import LinkRate


def test_pieces_leave_one_after_the_other_at_the_rate():
    rate = LinkRate(8_000)  # a byte in a millisecond
    assert rate.leave(100, 5.0) == pytest.approx(5.1)
    assert rate.leave(100, 5.0) == pytest.approx(5.2), "behind the first"
    assert rate.leave(100, 5.15) == pytest.approx(5.3), "late timers do not slow the link"


def test_nothing_is_saved_while_the_link_is_idle():
    rate = LinkRate(8_000)
    rate.leave(100, 0.0)
    assert rate.leave(1_000, 60.0) == pytest.approx(61.0)


@pytest.mark.parametrize("bit_s", [1e6, 5e6, 1e7, 1e8])
def test_many_pieces_take_what_their_bytes_take(bit_s):
    rate = LinkRate(bit_s)
    pieces = [rate.piece_bytes] * 100
    last = [rate.leave(count, 0.0) for count in pieces][-1]
    assert last == pytest.approx(8 * sum(pieces) / bit_s)
    assert pieces[0] * 8 / bit_s < 0.005, "a piece is short"


def test_without_a_rate_all_leaves_at_once():
    rate = LinkRate()
    assert rate.leave(10**9, 1.0) == rate.leave(1, 1.0) == 1.0


def test_a_link_that_carries_nothing_is_refused():
    with pytest.raises(ValueError, match="more than 0 bit/s"):
        LinkRate(0)
