import re
from pathlib import Path

from edgenewton.v1.privacy_mode import PrivacyMode
from edgenewton.v1.privacy_options import AgreedBudget
from session_events import joined, report

from coordinator.report.html import render
from coordinator.report.run import Run
from coordinator.telemetry.statistics import SessionStatistics


def test_the_devices_skipped_batches_are_in_their_own_column():
    statistics = SessionStatistics("s")
    for event in (joined("a"), report("a", 0, 1.0), *(report("a", step, 2.0, skipped=True) for step in range(1, 8))):
        statistics.apply(event)
    page = render(Run("s", Path("record"), devices=statistics.devices))
    head, row = re.findall(r"<tr>.*?</tr>", page[page.index("<h2>Devices</h2>") :], re.DOTALL)[:2]
    names = re.findall(r"<th[^>]*>(.*?)</th>", head)
    cells = dict(zip(names, re.findall(r"<td[^>]*>(.*?)</td>", row), strict=True))
    assert (cells["device"], cells["batches"], cells["skipped"]) == ("a", "1", "7")


def test_what_the_devices_were_promised_is_said():
    privacy = PrivacyMode(8, AgreedBudget(4.0, 1e-5), 2.5)
    page = render(Run("s", Path("record"), sessions=["s"], privacy=privacy))
    assert "privacy budget: epsilon 2.5 of 4 spent at delta 1e-05" in page
    assert "masked: the coordinator sees sums of at least 8 devices only" in page
