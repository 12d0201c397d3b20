"""What secure aggregation goes with, and what it is refused with."""

import pytest
from pydantic import ValidationError

from coordinator.session.settings import SessionSettings


def test_means_travel_in_int8_unless_something_finer_is_asked_for():
    assert SessionSettings(secure_aggregation=True).codec == "int8"
    assert SessionSettings(secure_aggregation=True, codec="bf16").codec == "bf16"
    assert SessionSettings().codec == "auto"
    told = SessionSettings(secure_aggregation=True, devices=5, quorum=3, mask_bits=4).to_proto().secure_aggregation
    assert (told.bits, told.least) == (4, 3)
    assert not SessionSettings().to_proto().HasField("secure_aggregation")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"aggregator": "history"}, "aggregator history looks at what each device sends"),
        ({"codec": "topk"}, "codec topk chooses some.*int8, fp32, bf16, fp16"),
        ({"devices": 1}, "two devices at least"),
        ({"devices": 3, "quorum": 1}, "two devices at least"),
        ({"mask_bits": 5}, "mask_bits"),
    ],
)
def test_what_does_not_go_with_it_is_named(settings, text):
    with pytest.raises(ValidationError, match=text):
        SessionSettings.model_validate({"secure_aggregation": True, **settings})
