"""A Flower app whose rounds carry gradients and nothing else: every client answers with `bytes` of float32."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()
server = ServerApp()


class TimedRounds(FedAvg):
    """Flower's own mean of what the clients send; notes when each round begins."""

    def __init__(self, devices: int) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=devices, min_available_nodes=devices)
        self.began: list[float] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Note the time."""
        self.began.append(time.perf_counter())
        return list(super().configure_train(server_round, arrays, config, grid))


@client.train()
def train(message: Message, _context: Context) -> Message:
    """Send back what came."""
    metrics = MetricRecord({"num-examples": 32})
    content = RecordDict({"arrays": message.content["arrays"], "metrics": metrics})
    return Message(content, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds; write the seconds that each took, but for the first, which starts things."""
    config = context.run_config
    strategy = TimedRounds(int(config["devices"]))
    gradients = ArrayRecord([np.ones(int(config["bytes"]) // 4, np.float32)])
    strategy.start(grid, gradients, num_rounds=int(config["rounds"]))
    seconds = [later - began for began, later in zip(strategy.began, strategy.began[1:], strict=False)]
    Path(str(config["output"])).write_text(json.dumps(seconds[1:]))
