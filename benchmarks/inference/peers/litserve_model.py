"""The model for LitServe: the ONNX file that ours serves, in ONNX Runtime. Runs in LitServe's own environment."""

import os
import sys

import litserve
import numpy as np
import onnxruntime


class OnnxApi(litserve.LitAPI):
    """Answers JSON {"raw": [...]}, one sample of 8 x 8 pixels, with its probabilities."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Read the model, for one thread, as our server does."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(os.environ["BENCHMARK_MODEL"], options)

    def decode_request(self, request: dict) -> np.ndarray:
        """Return the sample."""
        return np.array(request["raw"], dtype=np.uint8).reshape(1, 8, 8)

    def batch(self, inputs: list) -> np.ndarray:
        """Join samples."""
        return np.concatenate(inputs)

    def unbatch(self, output: np.ndarray) -> list:
        """Take probabilities apart."""
        return list(output[:, None])

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Run the model."""
        return self._session.run(None, {"raw": x})[0]

    def encode_response(self, output: np.ndarray) -> dict:
        """Return the answer."""
        return {"probabilities": output.ravel().tolist()}


if __name__ == "__main__":
    port, batch = int(sys.argv[1]), int(sys.argv[2])
    server = litserve.LitServer(OnnxApi(max_batch_size=batch, batch_timeout=0.002 if batch > 1 else 0.0))
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)
