"""Runs trials, several at once, each in a process of its own; every one is kept when it ends."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

from benchmarks.long.study import Trials
from benchmarks.long.trials import Key, Request, Trial, run_trial
from benchmarks.shared.record_store import options_text


def run_all(
    due: Callable[[], Sequence[Request]],
    trials: Trials,
    jobs: int,
    device: str,
    until: float,
    on_trial: Callable[[Trial], None],
) -> list[str]:
    """Run what is due until nothing is, or the time is over; return what failed, a line each.

    Args:
        due: returns what is to be run, the most urgent first, as the trials are now.
        trials: take what was run.
        jobs: trials at once.
        device: where they are trained.
        until: no trial is begun after this, in seconds of `time.monotonic`.
        on_trial: is told of each.

    """
    running: dict[Future[Trial], Request] = {}
    failed: dict[Key, str] = {}
    with ProcessPoolExecutor(jobs) as pool:
        while True:
            taken = {request.key for request in running.values()} | failed.keys()
            free = [request for request in due() if request.key not in taken] if time.monotonic() < until else []
            for request in free[: jobs - len(running)]:
                running[pool.submit(run_trial, request, device)] = request
            if not running:
                return list(failed.values())
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                request = running.pop(done)
                error = done.exception()
                if error is None:
                    trials.add(done.result())
                    on_trial(done.result())
                else:  # of one method on one task; the others are worth as much without it
                    what = f"{request.task}, {request.method}, {options_text(request.options)}, seed {request.seed}"
                    failed[request.key] = f"{what}: {type(error).__name__}: {error}"
