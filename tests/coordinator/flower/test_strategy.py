from types import SimpleNamespace

from flwr.app import MetricRecord, RecordDict

from coordinator.flower.strategy import _is_of_no_sample


def test_a_node_without_held_out_samples_says_nothing_of_the_model():
    def answer(samples):
        metrics = MetricRecord({"num-examples": samples, "accuracy": float("nan"), "loss": float("nan")})
        return SimpleNamespace(has_content=lambda: True, content=RecordDict({"metrics": metrics}))

    assert _is_of_no_sample(answer(0))
    assert not _is_of_no_sample(answer(3))
    assert not _is_of_no_sample(SimpleNamespace(has_content=lambda: False))  # an error
