"""What one Flower round takes that carries the same gradients, on both of Flower's engines."""

import json
import tempfile
from pathlib import Path

from benchmarks.shared.private_flower import PrivateFlower

APP = Path(__file__).with_name("flower_round")
_DEADLINE_S = 300.0


def flower_round_times(devices: int, size: int, *, supernodes: bool, rounds: int = 8) -> list[float]:
    """Return the seconds of each round in which `devices` clients send `size` bytes of float32.

    Args:
        devices: clients.
        size: bytes of the gradients.
        supernodes: on the deployment engine, with a SuperNode process for each client; else on the simulation engine.
        rounds: how many are run; the first two only start things.

    Raises:
        FlowerError: Flower did not start.
        RuntimeError: the run did not end as it should; the text holds its log.

    """
    with tempfile.TemporaryDirectory(prefix="edgenewton-") as name:
        folder = Path(name)
        output = folder / "rounds.json"
        flower = PrivateFlower(folder, supernodes=devices if supernodes else 0)
        try:
            flower.start()
            settings = {"bytes": size, "devices": devices, "rounds": rounds, "output": output}
            process = flower.run(settings, devices, app=APP)
            log, _ = process.communicate(timeout=_DEADLINE_S)
        finally:
            flower.stop()
        if not output.exists():
            raise RuntimeError(f"the Flower run failed:\n{log}")
        times: list[float] = json.loads(output.read_text())
        return times
