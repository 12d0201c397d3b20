"""The model for MLServer: the ONNX file that ours serves, in ONNX Runtime. Runs in MLServer's own environment."""

import os

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    """Answers input `raw` with output `probabilities`."""

    async def load(self) -> bool:
        """Read the model, for one thread, as our server does."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(os.environ["BENCHMARK_MODEL"], options)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run the model on a batch."""
        raw = NumpyCodec.decode_input(payload.inputs[0])
        (probabilities,) = self._session.run(None, {"raw": raw})
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("probabilities", probabilities)]
        )
