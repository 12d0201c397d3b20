import sys

import numpy as np
import pytest

from edge_client.tasks import TaskError, espeak, speech
from edge_client.tasks.speech import SpeechError, Utterance, speak


def pitch_hz(samples, rate):
    """Pitch by the highest peak of the autocorrelation between 60 and 400 Hz."""
    values = samples.astype(float)
    correlation = np.fft.irfft(np.abs(np.fft.rfft(values, 2 * len(values))) ** 2)
    shortest = rate // 400
    return rate / (shortest + np.argmax(correlation[shortest : rate // 60]))


def test_words_are_spoken_with_the_pitch_and_speed_that_were_asked_for():
    low, high, slow, fast = speak(
        [
            Utterance("no", "en-US+m3", pitch=10),
            Utterance("no", "en-US+m3", pitch=90),
            Utterance("no", "en-US+m3", rate=100),
            Utterance("no", "en-US+m3", rate=250),
        ]
    )
    assert low.rate == 22_050
    assert low.samples.dtype == np.int16
    assert np.abs(low.samples).max() > 3_000
    assert pitch_hz(high.samples, high.rate) > 1.2 * pitch_hz(low.samples, low.rate)
    assert len(slow.samples) > 1.3 * len(fast.samples)
    assert 0.1 < len(fast.samples) / fast.rate < len(slow.samples) / slow.rate < 1.5


def test_the_same_texts_are_spoken_in_the_same_way_in_every_process():
    texts = [Utterance(word, f"en+{voice}") for word in ("yes", "stop") for voice in ("f1", "m3")]
    once, again = speak(texts), speak(texts)
    assert all(np.array_equal(one.samples, other.samples) for one, other in zip(once, again, strict=True))
    assert not np.array_equal(once[0].samples, once[1].samples)


def test_nothing_to_say_is_no_error():
    assert speak([]) == []


@pytest.mark.parametrize("voice", ["xx", "en-GB+nosuch", "en-GB", ""])
def test_unknown_voices_are_named(voice):
    with pytest.raises(SpeechError, match=f"espeak-ng has no voice '{voice}'".replace("+", r"\+")):
        speak([Utterance("yes", "en"), Utterance("yes", voice)])


def test_a_text_without_sound_is_named():
    with pytest.raises(SpeechError, match="cannot speak ''"):
        speak([Utterance("", "en")])


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(TaskError, match=r"pip install edgenewton\[speech\]"):
        speak([Utterance("yes", "en")])


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import os; os.abort()", "ended with status -6"),
        ("raise OSError('no such library')", "no such library"),
        ("import sys; sys.stdout.buffer.write(bytes([34, 86, 0, 0]))", "spoke 0 of 1 texts"),
        ("import sys; sys.stdout.buffer.write(bytes([34, 86, 0, 0, 9, 0, 0, 0, 1]))", "answered something"),
        ("", "answered something"),
    ],
)
def test_a_process_that_fails_is_explained(tmp_path, monkeypatch, script, message):
    path = tmp_path / "espeak.py"
    path.write_text(script)
    monkeypatch.setattr(espeak, "__file__", str(path))
    with pytest.raises(SpeechError, match=message):
        speak([Utterance("yes", "en")])


def test_a_process_that_hangs_is_ended(tmp_path, monkeypatch):
    path = tmp_path / "espeak.py"
    path.write_text("import time; time.sleep(600)")
    monkeypatch.setattr(espeak, "__file__", str(path))
    monkeypatch.setattr(speech, "_START_S", 0.1)
    with pytest.raises(SpeechError, match="did not speak 1 texts within"):
        speak([Utterance("yes", "en")])
