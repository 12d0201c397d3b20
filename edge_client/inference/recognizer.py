"""Recognition: raw samples in, labels with probabilities out.

Samples and probabilities are NumPy's arrays, so that a device whose model runs in ONNX Runtime needs no PyTorch.
"""

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from edgenewton.common.extras import needing
from numpy.typing import NDArray

from edge_client.inference.engine_name import EXPORTED, EngineName
from edge_client.inference.errors import ArtefactError, NotFiniteError
from edge_client.inference.model import ModelInfo
from edge_client.inference.shapes import shape_text
from edge_client.tasks.decoders import Decoder, load_foreign_decoder
from edge_client.tasks.errors import SampleError, TaskError

if TYPE_CHECKING:
    from edge_client.inference.artefact import Artefact
    from edge_client.inference.engine import Engine
    from edge_client.tasks.task import Task

Probabilities = NDArray[np.float32]
"""`[n, labels]`."""


@dataclass(frozen=True)
class Prediction:
    """What a sample was recognised as: the most probable label."""

    label: str
    probability: float
    """Of that label, 0 to 1."""
    probabilities: dict[str, float]
    """Of every label; they sum to 1."""


class Recognizer:
    """A trained model, ready to recognise. It may be used by one thread at a time.

    `Recognizer.load` makes one of a file, and `Recognizer.of` one of an artefact.

    Args:
        info: what is known of the model.
        engine: what runs it.
        task: decodes samples, or a task's decoder; without it, arrays can be recognised.
        lack: why there is no task, for the error of other samples.

    """

    def __init__(self, info: ModelInfo, engine: "Engine", task: "Task | Decoder | None", lack: str = "") -> None:
        self.info = info
        self._engine = engine
        self._task = task
        self._lack = lack

    @classmethod
    def of(
        cls, artefact: "Artefact", engine: EngineName = "torch", device: str = "cpu", allow: Collection[str] = ()
    ) -> Self:
        """Return a recognizer for an artefact.

        Args:
            artefact: the model.
            engine: what runs it: "torch", "export" (the graph that `torch.export` makes), "onnx" (ONNX Runtime) or
                "executorch".
            device: the hardware that the model runs on: "cpu", "cuda" (or "cuda:1"), "mps", or "auto" for the first of
                CUDA, MPS and the CPU that there is. Samples and probabilities are on the CPU in any case.
            allow: import paths of tasks whose code may be run, besides those of this package and of installed entry
                points; see `edge_client.tasks.allowed`.

        Raises:
            ArtefactError: the artefact does not fit its task (the text names the first layer that differs), or this
                machine does not have the device.
            TaskError: its task cannot be loaded, or is not allowed.

        """
        from edge_client.inference.engine import make_engine
        from edge_client.tasks import load_foreign_task

        task = load_foreign_task(artefact.task, allow)
        return cls(ModelInfo.of(artefact, task), make_engine(engine, artefact, task, device), task)

    @classmethod
    def load(
        cls,
        path: str | Path,
        engine: EngineName | None = None,
        device: str = "cpu",
        allow: Collection[str] = (),
        threads: int | None = None,
    ) -> Self:
        """Return a recognizer for a model file: an artefact (.pt) or an exported model (.onnx, .pte).

        Args:
            path: the file.
            engine: what runs it; by default torch for an artefact. An .onnx file always runs in ONNX Runtime, and a
                .pte file in ExecuTorch.
            device: the hardware that the model runs on: see `of`.
            allow: import paths of tasks whose code may be run: see `of`.
            threads: that the model may use; as torch, or ONNX Runtime without it, would have it unless given.

        Raises:
            MissingExtraError: a package is missing that the file needs; the text says which extra brings it.
            ArtefactError: the file cannot be used, or the device; the text names it.
            TaskError: the task of an artefact cannot be loaded, or is not allowed.

        """
        path = Path(path)
        try:
            if path.suffix in EXPORTED:
                return cls._load_exported(path, engine, device, allow, threads)
            with needing("a model as an artefact (.pt)", "training"):
                import torch

                from edge_client.inference.artefact import Artefact
            if threads is not None:
                torch.set_num_threads(threads)
            return cls.of(Artefact.load(path), engine or "torch", device, allow)
        except ArtefactError as error:
            text = str(error)
            raise ArtefactError(text if text.startswith(str(path)) else f"{path}: {text}") from None

    @classmethod
    def _load_exported(
        cls, path: Path, engine: EngineName | None, device: str, allow: Collection[str], threads: int | None
    ) -> Self:
        from edge_client.inference.exported import load_exported

        name, title = EXPORTED[path.suffix]
        if engine not in (None, name):
            raise ArtefactError(f"{path} is {title}; engine {engine!r} cannot run it")
        loaded = load_exported(name, path, device, threads)
        try:
            return cls(loaded.info, loaded, load_foreign_decoder(loaded.info.task, allow))
        except TaskError as error:  # arrays can be recognised without the task's code
            return cls(loaded.info, loaded, None, str(error))

    @property
    def engine(self) -> str:
        """What runs the model: one of `ENGINES`."""
        return self._engine.name

    def predict(self, samples: Sequence[object]) -> list[Prediction]:
        """Recognise raw samples, in one batch: whatever the task decodes, such as paths, images or arrays.

        Raises:
            NotFiniteError: a sample makes the model's numbers overflow; it is a SampleError, too.
            SampleError: a sample cannot be used; nothing is recognised then.
            TaskError: the task's own code failed.

        """
        if not samples:
            return []
        probabilities = self.probabilities(np.stack([self.decode(sample) for sample in samples]))
        ensure_finite(probabilities, samples)
        return self.predictions(probabilities)

    def decode(self, sample: object) -> NDArray[Any]:
        """Return a raw sample as numbers, `[*raw_shape]` of `raw_dtype`.

        Raises:
            SampleError: it cannot be used.
            TaskError: the task's own code failed.

        """
        if self._task is not None:
            with self._running("decode"):
                decoded = self._task.decode(sample)
                raw = _array_of(decoded)
            if raw is None:
                raise TaskError(
                    f"decode of task {self.info.task!r} gave a {type(decoded).__name__}; it must return a tensor"
                )
        elif isinstance(sample, np.ndarray):
            raw = sample
        else:
            raise SampleError(
                f"only decoded samples can be recognised, arrays {list(self.info.raw_shape)} of {self.info.raw_dtype}: "
                f"{self._lack or 'the recognizer has no task'}"
            )
        self.check(raw[None])
        return raw

    def check(self, raw: NDArray[Any]) -> None:
        """Check a batch of decoded samples.

        Raises:
            SampleError: its shape or dtype are not the model's, or a sample holds NaN or infinity; the text says which.

        """
        if raw.dtype != self.info.numpy_dtype:
            raise SampleError(f"the sample holds {raw.dtype}; the model expects {self.info.raw_dtype}")
        if raw.shape[1:] != self.info.raw_shape:
            raise SampleError(
                f"the sample is {shape_text(raw.shape[1:])}; the model expects {shape_text(self.info.raw_shape)}"
            )
        if raw.dtype.kind == "f" and (bad := _first_not_finite(raw)) is not None:
            which = f"sample {bad + 1} of {len(raw)}: " if len(raw) > 1 else ""
            raise SampleError(f"{which}the sample holds NaN or infinity")

    def probabilities(self, raw: NDArray[Any]) -> Probabilities:
        """Return float32 probabilities `[n, labels]` of decoded samples `[n, *raw_shape]`.

        A sample that makes the model's numbers overflow has NaN for probabilities: `ensure_finite` says which.

        Raises:
            TaskError: the task's own code failed, or the model's outputs are not one row of labels for each sample.

        """
        with self._running("the model"):
            probabilities = self._engine(raw)
        expected = (raw.shape[0], len(self.info.labels))
        if probabilities.shape != expected:
            raise TaskError(
                f"the model of task {self.info.task!r} gave {shape_text(probabilities.shape)} outputs; "
                f"{shape_text(expected)} were expected, a row for each sample with a number for each label"
            )
        return probabilities

    def predictions(self, probabilities: Probabilities) -> list[Prediction]:
        """Return probabilities `[n, labels]` as predictions.

        Raises:
            NotFiniteError: some are not finite.

        """
        ensure_finite(probabilities)
        return [self._prediction(row) for row in probabilities.tolist()]

    def true_label(self, sample: object) -> str | None:
        """Return the label that a raw sample carries itself, if it does.

        Raises:
            TaskError: the task's own code failed.

        """
        if self._task is None:
            return None
        with self._running("true_label"):
            return self._task.true_label(sample)

    @contextmanager
    def _running(self, what: str) -> Iterator[None]:
        """Say of whatever a user's code raises inside where it came from; what is said of a sample goes through."""
        try:
            yield
        except (SampleError, TaskError):
            raise
        except (Exception, SystemExit) as error:  # a user's code runs here, and may raise anything
            raise TaskError(f"{what} of task {self.info.task!r} failed: {type(error).__name__}: {error}") from error

    def _prediction(self, row: list[float]) -> Prediction:
        probabilities = dict(zip(self.info.labels, row, strict=True))
        label = max(probabilities, key=probabilities.__getitem__)
        return Prediction(label, probabilities[label], probabilities)


def ensure_finite(probabilities: NDArray[Any], samples: Sequence[object] = ()) -> None:
    """Check probabilities `[n, labels]`; `samples` that are paths are called so.

    Raises:
        NotFiniteError: some are NaN or infinite; the text names the first such sample, and says what to do.

    """
    bad = _first_not_finite(probabilities)
    if bad is None:
        return
    name = f"sample {bad + 1} of {len(probabilities)}" if len(probabilities) > 1 else "the sample"
    if samples and isinstance(samples[bad], str | Path):
        name = str(samples[bad])
    raise NotFiniteError(
        f"{name}: the model's output 'probabilities' is not finite, for its numbers overflow inside the model: send "
        "numbers of the size that the model was trained with; if all samples fail so, its weights are damaged"
    )


def is_finite(rows: NDArray[Any]) -> bool:
    """Return whether an array holds neither NaN nor infinity."""
    return bool(np.isfinite(rows).all())


def _first_not_finite(rows: NDArray[Any]) -> int | None:
    """Return the place of the first row, of `[n, ...]`, that holds NaN or infinity."""
    if is_finite(rows):
        return None
    return int(np.argmin(np.isfinite(rows).reshape(len(rows), -1).all(axis=1)))


def _array_of(decoded: Any) -> NDArray[Any] | None:
    """Return what a task decoded as an array; None if it is neither one nor a tensor."""
    if isinstance(decoded, np.ndarray):
        return decoded
    torch = sys.modules.get("torch")  # whose tensor it is has imported it
    if torch is None or not isinstance(decoded, torch.Tensor):
        return None
    array: NDArray[Any] = decoded.detach().cpu().numpy()
    return array
