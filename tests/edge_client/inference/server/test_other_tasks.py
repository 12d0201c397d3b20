"""Sounds and sensor windows, as files and as FP32 tensors, good and bad."""

import io
import json

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from scipy.io import wavfile
from server_process import serving
from tritonclient.utils import InferenceServerException

from edge_client.tasks.motion import MotionTask


@pytest.fixture(scope="module")
def motion(tmp_path_factory):
    with serving("motion", tmp_path_factory.mktemp("motion")) as server:
        yield server


@pytest.fixture(scope="module")
def keywords(tmp_path_factory):
    with serving("keywords", tmp_path_factory.mktemp("keywords")) as server:
        yield server


def test_windows_in_fp32_and_in_csv(motion, tmp_path):
    task = MotionTask()
    window = task.loaded.raw[task.held_out[:3]].numpy()
    expected = motion.recognizer.probabilities(window)
    tensor = triton.InferInput("raw", window.shape, "FP32")
    tensor.set_data_from_numpy(window)
    with triton.InferenceServerClient(motion.grpc) as client:
        np.testing.assert_allclose(client.infer("motion", [tensor]).as_numpy("probabilities"), expected, atol=1e-6)
        bad = window.copy()
        bad[1, 2, 3] = np.nan
        tensor.set_data_from_numpy(bad)
        with pytest.raises(InferenceServerException, match="the sample holds NaN or infinity"):
            client.infer("motion", [tensor])
    task.save_sample(0, tmp_path / "window.csv")
    content = (tmp_path / "window.csv").read_bytes()
    answer = httpx.post(f"http://{motion.rest}/recognize", content=content, headers={"Content-Type": "text/csv"})
    (prediction,) = motion.recognizer.predict([content])
    assert answer.json()["label"] == prediction.label
    for content, message in ((b"1,2\n", "the table has 1 x 2 numbers"), (b"nan,2\n", "holds 'nan', no finite number")):
        answer = httpx.post(f"http://{motion.rest}/recognize", content=content)
        assert (answer.status_code, message in answer.json()["error"]) == (400, True)
    body = {"inputs": [{"name": "raw", "datatype": "FP32", "shape": [1, 128, 6], "data": [0.0] * 767 + [float("nan")]}]}
    text = json.dumps(body)
    answer = httpx.post(f"http://{motion.rest}/v2/models/motion/infer", content=text)
    assert (answer.status_code, answer.json()["error"]) == (400, "the sample holds NaN or infinity")
    motion.assert_alive()


def test_sounds_of_any_sample_rate(keywords):
    time = np.arange(22_050) / 22_050
    file = io.BytesIO()
    wavfile.write(file, 22_050, (8_000 * np.sin(2 * np.pi * 440 * time)).astype(np.int16))
    answer = httpx.post(
        f"http://{keywords.rest}/recognize", content=file.getvalue(), headers={"Content-Type": "audio/wav"}
    )
    (prediction,) = keywords.recognizer.predict([file.getvalue()])
    assert answer.json()["label"] == prediction.label
    for content in (b"", file.getvalue()[:20], b"RIFF of nothing"):
        answer = httpx.post(f"http://{keywords.rest}/recognize", content=content, headers={"Content-Type": "audio/wav"})
        assert answer.status_code == 400
        assert answer.json()["error"]
    keywords.assert_alive()
