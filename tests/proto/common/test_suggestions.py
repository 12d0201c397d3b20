import pytest
from edgenewton.common.suggestions import suggestion

KNOWN = ("lr", "steps", "batch-size", "momentum", "outer-momentum")


@pytest.mark.parametrize(
    ("written", "question"),
    [
        ("stepz", "; did you mean 'steps'?"),
        ("Batch_Size", "; did you mean 'batch-size'?"),
        ("learning-rate", "; did you mean 'lr'?"),
        ("learnin-rate", "; did you mean 'lr'?"),
        ("xyzzy", ""),
    ],
)
def test_what_is_near_is_asked_for(written, question):
    assert suggestion(written, KNOWN, {"learning-rate": "lr"}) == question
