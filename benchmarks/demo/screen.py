"""What the person in front of the demo sees while the devices train, fed by the coordinator's events."""

import contextlib
import threading
import time
from collections.abc import Iterator

import grpc
from rich.console import Group, RenderableType
from rich.text import Text

from benchmarks.shared.watched_training import WatchedTraining
from coordinator.telemetry.watch import follow


class Screen:
    """What the person in front of it sees while the devices train."""

    def __init__(self) -> None:
        self.doing = "starting"
        self.training = WatchedTraining()
        self.began = time.monotonic()

    def __rich__(self) -> RenderableType:
        seconds = f"  {time.monotonic() - self.began:5.1f} s  "
        head = Text.assemble(("EdgeNewton demo", "bold"), seconds, (self.doing, "cyan"))
        return Group(head, self.training.view) if self.training.statistics.devices else Group(head)


def watch(address: str, screen: Screen, over: threading.Event) -> None:
    """Feed the screen with the coordinator's events until the run is over.

    The coordinator tells every listener all that happened, so a new stream after a broken one tells a new training.
    """
    while not over.is_set():
        training = WatchedTraining()
        with contextlib.suppress(grpc.RpcError):
            for event in follow(address):
                training.apply(event)
                screen.training, statistics = training, training.statistics
                if statistics.phase == "training":
                    screen.doing = f"{len(statistics.devices)} devices train together ({training.view.session})"
                elif statistics.phase == "ended":
                    screen.doing = "the devices evaluate the model and the ServerApp writes a checkpoint"
            return
        over.wait(0.2)


@contextlib.contextmanager
def watching(address: str, screen: Screen) -> Iterator[None]:
    """Watch for the length of a `with` block."""
    over = threading.Event()
    thread = threading.Thread(target=watch, args=(address, screen, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=5)
