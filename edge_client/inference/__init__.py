"""On-device recognition: the artefact of a trained model, and the recognizer that uses it."""

from edge_client.inference.artefact import Artefact, ArtefactError
from edge_client.inference.model import ModelInfo
from edge_client.inference.recognizer import Prediction, Recognizer

__all__ = ["Artefact", "ArtefactError", "ModelInfo", "Prediction", "Recognizer"]
