import pytest

from coordinator.report.names import LENGTH, shorten


def test_names_that_differ_at_their_ends_can_be_told_apart():
    names = [f"plant-munich-hall-7-line-12-gateway-{number:05}" for number in range(3)]
    short = shorten(names)
    assert list(short) == names
    assert short[names[1]] == "plant-munic…ateway-00001"
    assert len({*short.values()}) == 3


def test_names_that_differ_in_the_middle_stay_whole():
    names = [f"sensor-of-the-line-{kind}-in-the-north-hall-1" for kind in ("up", "down")]
    assert shorten(names) == {name: name for name in names}


@pytest.mark.parametrize("length", [1, LENGTH])
def test_a_short_name_stays_as_it_is(length):
    assert shorten(["x" * length]) == {"x" * length: "x" * length}
    assert len(shorten(["x" * (LENGTH + 1)]).popitem()[1]) == LENGTH
