from dataclasses import replace

from benchmarks.zoo import __main__ as zoo

GOOD = zoo.Result(
    model="a model",
    package="a package",
    parameters=1234,
    curvature_share=0.996,
    overhead=1.84,
    loss_before=1.1,
    loss_sgd=1.09,
    loss_adam=0.56,
    loss_newton=0.29,
    samples=6,
    samples_told=6,
    wrong_gradients=[],
    not_resumed=[],
    devices_apart=[],
)


def test_the_headline_counts_the_models_of_which_each_thing_holds():
    results = [
        GOOD,
        replace(GOOD, wrong_gradients=["weight in step 0"]),
        replace(GOOD, not_resumed=["weight"]),
        replace(GOOD, loss_newton=1.09),
    ]
    assert zoo.headline(results) == {
        "models": 4,
        "models_equal_to_autograd": 3,
        "models_resuming_bit_for_bit": 3,
        "models_ahead_of_sgd": 3,
    }


def test_what_does_not_hold_is_named():
    assert GOOD.wrong == []
    assert replace(GOOD, samples_told=1, devices_apart=["weight"]).wrong == ["devices apart", "1 samples for 6"]
    assert "| 1,234 " in zoo.table([GOOD])


def test_a_table_takes_the_place_of_the_one_before_it(tmp_path, monkeypatch):
    document = tmp_path / "models.md"
    document.write_text(f"Before.\n\n{zoo.BEGIN}\n{zoo.END}\n\nAfter.\n")
    monkeypatch.setattr(zoo, "DOCUMENT", document)
    zoo.write_document("first")
    zoo.write_document("second")
    assert document.read_text() == f"Before.\n\n{zoo.BEGIN}\n\nsecond\n\n{zoo.END}\n\nAfter.\n"
