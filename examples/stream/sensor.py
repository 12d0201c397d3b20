"""A sensor that speaks TCP: to whoever connects it sends a line for each reading, eight numbers and what they mean."""

import argparse
import itertools
import random
import socketserver
from collections.abc import Iterator, Sequence

STATES = ("quiet", "alarm")


def readings(seed: int) -> Iterator[str]:
    """Return lines without end; one in six is of an alarm, with three times the spread."""
    source = random.Random(seed)
    while True:
        state = STATES[source.random() < 1 / 6]
        spread = 3.0 if state == "alarm" else 1.0
        yield ",".join([*(f"{source.gauss(0, spread):.4f}" for _ in range(8)), state])


class Sensor(socketserver.ThreadingTCPServer):
    """Serves readings; each connection has others.

    Args:
        port: to listen on; 0 for a free one.

    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Connection)
        self.seeds = itertools.count()


class _Connection(socketserver.StreamRequestHandler):
    server: Sensor

    def handle(self) -> None:
        for line in readings(next(self.server.seeds)):
            try:
                self.wfile.write(f"{line}\n".encode())
            except OSError:
                return  # who listened has gone


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9100)
    with Sensor(parser.parse_args(arguments).port) as sensor:
        print(f"the sensor listens on 127.0.0.1:{sensor.server_address[1]}", flush=True)
        sensor.serve_forever()


if __name__ == "__main__":
    main()
