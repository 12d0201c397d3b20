import pytest

from coordinator.flower.history import first_rounds, save_history
from coordinator.telemetry.run_files import HISTORY_NAME

ROUNDS = [{"round": 1, "step": 6}, {"round": 2, "step": 13}]


def test_a_run_that_goes_on_finds_the_rounds_behind_its_checkpoint(tmp_path):
    assert save_history(ROUNDS, {"lr": 0.1}, tmp_path) == tmp_path / HISTORY_NAME
    assert first_rounds(tmp_path, 1) == ROUNDS[:1]
    assert first_rounds(tmp_path, 2) == ROUNDS


@pytest.mark.parametrize("text", [None, "{", "[]", '{"rounds": [1]}', '{"rounds": [{}]}'])
def test_without_a_history_that_can_be_read_nothing_is_known(tmp_path, text):
    if text is not None:
        (tmp_path / HISTORY_NAME).write_text(text)
    assert first_rounds(tmp_path, 2) == []
