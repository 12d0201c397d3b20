"""What all exports share: they are tried with an example first, keep quiet, and fail with one sentence."""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from edge_client.inference.errors import ArtefactError
from edge_client.tasks import Task

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST = 300
"""Characters of another package's message that are shown."""


@contextlib.contextmanager
def exporting(task: Task, what: str, target: str) -> Iterator[None]:
    """Say in one sentence why an export inside fails, and keep the exporters' remarks from the user's screen.

    Args:
        task: whose model or preprocessing is exported.
        what: of the two, "the model" or "the preprocessing".
        target: what it is exported to, "ONNX".

    Raises:
        ArtefactError: the export failed; the text names the task and the first cause.

    """
    try:
        with _quiet():
            yield
    except ArtefactError:
        raise
    except Exception as error:  # the exporters' exceptions have no common class
        raise ArtefactError(f"{what} of task {task.name!r} cannot be exported to {target}: {_cause(error)}") from error


def example_samples(task: Task, count: int) -> Tensor:
    """Return decoded samples of zeros, `[count, *raw_shape]` of `raw_dtype`."""
    return torch.zeros(count, *task.raw_shape, dtype=task.raw_dtype)


def example_inputs(task: Task, count: int) -> Tensor:
    """Return zeros of the shape and dtype that `preprocess` makes of decoded samples: numbers or, of a text, tokens.

    Raises:
        ArtefactError: `preprocess` fails; the text names the task and the cause.

    """
    try:
        return torch.zeros_like(task.preprocess(example_samples(task, count)))
    except Exception as error:  # a user's code runs here, and may raise anything
        raise ArtefactError(f"preprocess of task {task.name!r} fails at zeros: {_cause(error)}") from error


def ensure_runs(task: Task, classifier: nn.Module, inputs: Tensor) -> None:
    """Try a model that is to be exported.

    Args:
        task: the model is of.
        classifier: the model.
        inputs: as `example_inputs` gives them.

    Raises:
        ArtefactError: it fails at them; the text says whether whole numbers would be right.

    """
    error = _failure(classifier, inputs)
    if error is None:
        return
    kind = str(inputs.dtype).removeprefix("torch.")
    way_out = ""
    if inputs.dtype != torch.int64 and _failure(classifier, inputs.long()) is None:
        way_out = "; it takes int64, such as tokens: set raw_dtype = torch.int64 in the task, or let preprocess make it"
    raise ArtefactError(f"the model of task {task.name!r} fails at inputs of {kind}: {_cause(error)}{way_out}")


def batch_graph(module: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """Return the graph of a module of one input, for any size of batch.

    Args:
        module: in evaluation mode.
        example: two inputs, `[2, ...]`, because a batch of one would be taken for a constant.

    Raises:
        Exception: of many kinds, whatever torch raises.

    """
    batch = torch.export.Dim("batch", min=1)
    try:
        return torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
    except Exception as error:
        # It reads the code, which is slower, and has a number for `len(inputs)` that is no constant.
        try:
            return torch.export.export(module, (example,), dynamic_shapes=({0: batch},), strict=True)
        except Exception:
            raise error from None


def _failure(module: nn.Module, inputs: Tensor) -> Exception | None:
    try:
        with torch.no_grad():
            module(inputs)
    except Exception as error:  # a user's code runs here, and may raise anything
        return error
    return None


def _cause(error: BaseException) -> str:
    """Return what an exception was raised for at first, as a line: the first paragraph of its text."""
    while (earlier := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = earlier
    if type(error).__name__ == "GuardOnDataDependentSymNode":  # its own text is of the exporter's variables
        return "what is computed depends on a sample's numbers (an `if`, a shape), which a graph cannot say"
    if "Constraints violated (batch)" in str(error):
        return "the number of samples is a constant in it, so that its graph is for batches of one size alone"
    paragraph = _COLOURS.sub("", str(error)).strip().partition("\n\n")[0]
    text = " ".join(paragraph.split()).rstrip(".: ") or "no reason was given"
    return f"{type(error).__name__}: {text if len(text) <= _LONGEST else text[:_LONGEST] + '…'}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep remarks on deprecations, on torchvision and on libraries for other hardware from the screen."""
    before = logging.root.manager.disable
    handlers = logging.getLogger("torch.export").handlers  # it logs what it raises, too
    logging.disable(logging.WARNING)
    for handler in handlers:
        handler.addFilter(_nothing)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),  # torch.export prints graphs that it gives up
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        for handler in handlers:
            handler.removeFilter(_nothing)


def _nothing(_: logging.LogRecord) -> bool:
    return False
