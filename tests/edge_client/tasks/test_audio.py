import io
import os
import struct

import numpy as np
import pytest
from scipy.io import wavfile

from edge_client.tasks import SampleError
from edge_client.tasks.audio import Recording, loudest, read_sound, read_title, resample, write_wav

RATE = 16_000


def sine(rate, hertz=440.0, seconds=1.0, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


def loudest_hertz(waveform, rate):
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return np.argmax(spectrum) * rate / len(waveform)


def wav_of_24_bits(path, rate, values):
    """Written by hand, because SciPy does not write it."""
    body = b"".join(struct.pack("<i", int(value * (2**23 - 1)))[:3] for value in values)
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        36 + len(body),
        b"WAVE",
        b"fmt ",
        16,
        1,
        1,
        rate,
        rate * 3,
        3,
        24,
        b"data",
        len(body),
    )
    path.write_bytes(header + body)


@pytest.mark.parametrize("kind", ["uint8", "int16", "int24", "int32", "float32", "float64"])
def test_every_kind_of_wav_holds_the_same_sound(tmp_path, kind):
    values, path = sine(8_000), tmp_path / "a.wav"
    if kind == "int24":
        wav_of_24_bits(path, 8_000, values)
    elif kind == "uint8":
        wavfile.write(path, 8_000, np.round(values * 127 + 128).astype(np.uint8))
    elif kind.startswith("int"):
        wavfile.write(path, 8_000, (values * np.iinfo(kind).max).astype(kind))
    else:
        wavfile.write(path, 8_000, values.astype(kind))
    tolerance = 0.01 if kind == "uint8" else 1e-4
    recording = read_sound(path)
    assert recording.rate == 8_000
    assert np.abs(recording.samples[:, 0] - values).max() < tolerance
    assert np.array_equal(read_sound(path.read_bytes()).samples, recording.samples)
    if kind != "int24":
        raw = Recording(wavfile.read(path)[1], 8_000)
        assert np.allclose(resample(raw, 8_000), values / 0.5, atol=3 * tolerance)


@pytest.mark.parametrize("rate", [4_000, 8_000, 11_025, 16_000, 22_050, 44_100, 44_101, 48_000, 96_000, 192_000])
def test_resampling_keeps_pitch_level_and_duration(rate):
    waveform = resample(Recording(sine(rate), rate), RATE)
    assert waveform.dtype == np.float32
    assert abs(len(waveform) - RATE) <= 1
    assert loudest_hertz(waveform, RATE) == pytest.approx(440, abs=1)
    middle = waveform[2_000:14_000]
    assert np.sqrt(2 * np.mean(middle**2)) == pytest.approx(1, abs=0.01)


def test_what_is_above_the_new_range_does_not_fold_back():
    both = sine(48_000, 1_000) + sine(48_000, 15_000)
    spectrum = np.abs(np.fft.rfft(resample(Recording(both, 48_000), RATE)[1_000:15_000]))
    hertz = np.fft.rfftfreq(14_000, 1 / RATE)
    assert spectrum[np.abs(hertz - 1_000) < 50].max() > 300 * spectrum[np.abs(hertz - 1_000) > 200].max()


def test_channels_are_averaged_and_the_constant_part_goes():
    left, right = sine(RATE, 300), sine(RATE, 700)
    mixed = resample(Recording(np.stack([left, right], axis=1) + 0.25, RATE), RATE)
    assert np.allclose(mixed, (left + right) / np.abs(left + right).max(), atol=1e-3)


@pytest.mark.parametrize("factor", [1e-300, 1e-6, 1.0, 1e300])
def test_the_level_does_not_count(factor):
    expected = resample(Recording(sine(8_000), 8_000), RATE)
    assert np.allclose(resample(Recording(sine(8_000) * factor, 8_000), RATE), expected, atol=1e-6)


def test_a_short_sound_is_centred_wherever_it_was():
    word = sine(RATE, seconds=0.3) * np.hanning(4_800)
    for before, after in ((0, 0), (100, 30_000), (30_000, 0), (12_345, 4_321)):
        waveform = np.concatenate([np.zeros(before), word, np.zeros(after)]).astype(np.float32)
        found = loudest(waveform, RATE)
        assert found.shape == (RATE,)
        assert found.dtype == np.float32
        start = int(np.flatnonzero(found)[0])
        assert abs(start + 2_400 - 8_000) <= 2
        assert np.allclose(found[start : start + 4_798], word[1:4_799], atol=1e-6)


def test_the_louder_of_two_words_is_taken():
    quiet, loud = sine(RATE, 300, 0.3, 0.2), sine(RATE, 900, 0.3, 0.5)
    for pair in ([quiet, loud], [loud, quiet]):
        waveform = np.concatenate([pair[0], np.zeros(2 * RATE), pair[1]]).astype(np.float32)
        assert loudest_hertz(loudest(waveform, RATE), RATE) == pytest.approx(900, abs=5)


@pytest.mark.parametrize("length", [1, 2, 15_999, 16_000, 16_001])
def test_any_length_gives_one_second(length):
    waveform = np.random.default_rng(length).normal(size=length).astype(np.float32)
    assert loudest(waveform, RATE).shape == (RATE,)


def test_a_wav_carries_its_title(tmp_path):
    samples = (sine(22_050) * 32_767).astype(np.int16)
    write_wav(tmp_path / "a.wav", Recording(samples, 22_050), "stop")
    assert read_title(tmp_path / "a.wav") == "stop"
    rate, written = wavfile.read(tmp_path / "a.wav")
    assert rate == 22_050
    assert np.array_equal(written, samples)
    wavfile.write(tmp_path / "b.wav", 22_050, samples)
    assert read_title(tmp_path / "b.wav") is None
    assert read_title(tmp_path / "missing.wav") is None


def bad_files(folder):
    tone = (sine(RATE) * 32_767).astype(np.int16)
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("no sound at all, but many words about it")
    wavfile.write(folder / "whole.wav", RATE, tone)
    whole = (folder / "whole.wav").read_bytes()
    (folder / "header.wav").write_bytes(whole[:20])
    wavfile.write(folder / "none.wav", RATE, tone[:0])
    wavfile.write(folder / "silent.wav", RATE, np.full(RATE, 77, np.int16))
    wavfile.write(folder / "nan.wav", RATE, np.where(np.arange(RATE) == 5, np.nan, tone / 32_768).astype(np.float32))
    wavfile.write(folder / "slow.wav", 5, tone)
    (folder / "fast.wav").write_bytes(whole[:24] + struct.pack("<I", 2_000_000_000) + whole[28:])
    wavfile.write(folder / "many.wav", RATE, np.zeros((100, 9), np.int16))
    wavfile.write(folder / "long.wav", RATE, np.zeros(31 * RATE, np.uint8))
    (folder / "tone.raw").write_bytes(tone.tobytes())
    (folder / "folder.wav").mkdir()
    os.mkfifo(folder / "pipe.wav")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.wav", "missing.wav does not exist"),
        ("empty.wav", "empty.wav is empty; a sound file was expected"),
        ("text.wav", "text.wav is not a sound file"),
        ("header.wav", "header.wav is not a sound file .* or is damaged"),
        ("none.wav", "none.wav has no samples"),
        ("silent.wav", "silent.wav is silent"),
        ("nan.wav", "nan.wav holds values that are infinite or NaN"),
        ("slow.wav", "slow.wav has 5 samples per second; 4,000 to 192,000 were expected"),
        ("fast.wav", "fast.wav has 2,000,000,000 samples per second|fast.wav is not a sound file"),
        ("many.wav", "many.wav has 9 channels; 1 to 8 were expected"),
        ("long.wav", "long.wav lasts 31.0 s; 30 s are the limit"),
        ("tone.raw", "tone.raw is not a sound file"),
        ("folder.wav", "folder.wav is not a file"),
        ("pipe.wav", "pipe.wav is not a file"),
    ],
)
def test_bad_files_are_named(tmp_path, name, message):
    bad_files(tmp_path)
    with pytest.raises(SampleError, match=message):
        resample(read_sound(tmp_path / name), RATE, name)


def test_a_sound_cut_short_gives_what_is_left(tmp_path):
    bad_files(tmp_path)
    whole = (tmp_path / "whole.wav").read_bytes()
    assert np.array_equal(read_sound(whole[:1_044]).samples, read_sound(whole).samples[:500])


def test_damaged_bytes_are_refused_or_read_but_never_worse():
    file = io.BytesIO()
    wavfile.write(file, RATE, (sine(RATE, seconds=0.01) * 32_767).astype(np.int16))
    whole, rng = file.getvalue(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for position in rng.integers(0, 60, 3):
            damaged[position] = rng.integers(0, 256)
        try:
            waveform = resample(read_sound(bytes(damaged)), RATE)
        except SampleError:
            continue
        assert np.isfinite(waveform).all()


@pytest.mark.parametrize(
    ("recording", "message"),
    [
        (Recording(np.zeros((2, 2, 2)), RATE), r"shape \[2, 2, 2\]"),
        (Recording(np.zeros(0), RATE), "no samples"),
        (Recording(np.zeros((5, 0)), RATE), "0 channels"),
        (Recording(np.zeros(5, complex), RATE), "complex128, not signed integers, uint8 or floats"),
        (Recording(np.zeros(5, np.uint16), RATE), "uint16"),
        (Recording(np.array([0, np.inf, 1]), RATE), "infinite or NaN"),
        (Recording(np.zeros(5), 0), "0 samples per second"),
        (Recording(np.zeros(5), -8_000), "-8,000 samples per second"),
        (Recording(np.zeros(5), 8_000.5), "8000.5, which is no whole number"),
        (Recording(np.full(1_000, 0.1), RATE), "silent"),
        (Recording(sine(RATE, seconds=31), RATE), "31.0 s; 30 s are the limit"),
    ],
)
def test_bad_arrays_are_named(recording, message):
    with pytest.raises(SampleError, match=message):
        resample(recording, RATE)
