"""What a terminal shows of a device's own training: a bar on a terminal, and a line now and then elsewhere."""

import time
from collections.abc import Callable
from typing import Self

from edgenewton.common.console import LineConsole, out
from edgenewton.common.progress import Best, Pace, better, progress_text
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from edge_client.training.work import TrainedStep

LINE_EVERY_S = 30.0
"""Seconds between two lines, where there is no terminal."""
_REDRAWS_PER_S = 2


class TrainingView:
    """Shows how far a training is. Use it in a `with` block, and call it after each step.

    Args:
        device: id of this device.
        run_steps: batches of the whole run.
        epsilon: that may be spent in it; None without a privacy budget.
        console: where it is shown; None for standard output.
        clock: gives the time, in seconds.

    """

    def __init__(
        self,
        device: str,
        run_steps: int,
        epsilon: float | None = None,
        console: LineConsole | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console = out if console is None else console
        self._device = device
        self._run_steps = run_steps
        self._budget = "" if epsilon is None else f" of {epsilon:g}"
        self._clock = clock
        self._pace = Pace()
        self._best: Best | None = None
        self._accuracy: float | None = None
        self._printed_at = clock()
        self._line = "waits for the first step"
        self._bar = Progress(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(None), expand=True)
        self._task = self._bar.add_task(device, total=run_steps)
        self._live = Live(self, console=console, refresh_per_second=_REDRAWS_PER_S, transient=True)
        self._is_drawn = console.is_terminal

    def __enter__(self) -> Self:
        if self._is_drawn:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def __rich__(self) -> RenderableType:
        return Group(self._bar.get_renderable(), Text(self._line))

    def __call__(self, step: TrainedStep) -> None:
        """Take in a step that was taken."""
        now = self._clock()
        self._pace.add(1, now)
        if step.evaluation is not None and step.evaluation.samples:
            self._accuracy = step.evaluation.accuracy
            self._best = better(self._best, step.step, self._accuracy)
        if self._is_drawn:
            self._bar.update(self._task, completed=step.step + 1)
            self._line = self._text(step, now)
        elif now >= self._printed_at + LINE_EVERY_S:
            self._printed_at = now
            self._console.print(f"{self._device}: {self._text(step, now)}")

    def _text(self, step: TrainedStep, now: float) -> str:
        done = min(step.step + 1, self._run_steps)
        text = progress_text(done, self._run_steps, self._pace.per_s(now), self._best)
        accuracy = "" if self._accuracy is None else f", accuracy {self._accuracy:.1%}"
        epsilon = "" if step.epsilon is None else f", epsilon {step.epsilon:.3g}{self._budget}"
        return f"{text}, loss {step.session_loss:.4f}{accuracy}{epsilon}"
