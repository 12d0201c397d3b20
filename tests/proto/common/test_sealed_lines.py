import json

import pytest
from broken_disks import flipped, full_disk
from edgenewton.common.sealed_lines import LineFile, check_lines


@pytest.fixture
def path(tmp_path):
    return tmp_path / "logs" / "lines.jsonl"


def fill(path, count, first=0, **options):
    file = LineFile(path, **{"max_bytes": 10_000, "kept": 2} | options)
    for number in range(first, first + count):
        file.write({"number": number, "text": "ü"})
    file.close()


def test_lines_are_whole_and_go_on_after_a_restart(path):
    fill(path, 3)
    fill(path, 2, first=3)
    assert [json.loads(line)["number"] for line in path.read_text().splitlines()] == [0, 1, 2, 3, 4]
    assert check_lines(path.read_bytes()).damaged == []
    assert path.stat().st_mode & 0o777 == 0o600


def test_every_flipped_bit_and_every_missing_line_is_noticed(path):
    fill(path, 3)
    data = path.read_bytes()
    assert all(check_lines(flipped(data, bit)).damaged for bit in range(8 * len(data)))
    lines = data.splitlines(keepends=True)
    assert check_lines(lines[0] + lines[2]).damaged == [2]
    assert check_lines(lines[1] + lines[0] + lines[2]).damaged == [1, 2, 3]
    assert check_lines(data[:-5]).damaged == [3]


def test_lines_of_an_earlier_release_come_first(path):
    path.parent.mkdir()
    path.write_text('{"event": "joined"}\n')
    fill(path, 2)
    report = check_lines(path.read_bytes())
    assert (report.lines, report.damaged, report.unsealed) == (3, [], 1)
    assert check_lines(path.read_bytes() + b'{"event": "joined"}\n').damaged == [4]


def test_a_line_that_a_power_cut_tore_stays_alone(path):
    fill(path, 2)
    path.write_bytes(path.read_bytes()[:-7])
    fill(path, 2, first=2)
    report = check_lines(path.read_bytes())
    assert (report.lines, report.damaged) == (4, [2])


def test_a_full_disk_takes_a_line_whole_or_not_at_all(path):
    fill(path, 2)
    file = LineFile(path, 10_000, 2)
    whole = path.read_bytes()
    with full_disk(len(whole) + 10):
        for _ in range(2):
            with pytest.raises(OSError, match="File too large"):
                file.write({"number": 2})
    assert path.read_bytes() == whole
    file.write({"number": 2})
    file.close()
    assert check_lines(path.read_bytes()).damaged == []


def test_full_files_get_numbers(path):
    fill(path, 40, max_bytes=500)
    assert sorted(other.name for other in path.parent.iterdir()) == ["lines.jsonl", "lines.jsonl.1", "lines.jsonl.2"]
    files = [path.with_name(f"{path.name}{ending}") for ending in (".2", ".1", "")]
    assert all(file.stat().st_size <= 500 and check_lines(file.read_bytes()).damaged == [] for file in files)
    numbers = [json.loads(line)["number"] for file in files for line in file.read_text().splitlines()]
    assert numbers == list(range(numbers[0], 40))
