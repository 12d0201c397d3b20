from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client import EveryBatch, GradientExchange, NewtonOptimizer


class Skipping(nn.Module):
    """Uses its middle layer, or does not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.uses_middle = True

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.last(h + self.middle(h) if self.uses_middle else h)


def train(address: str, device: str, model: Skipping):
    """Train six steps; "c" diverges in step 1 and heals in step 2, from which on no batch uses the middle layer."""
    generator = torch.Generator().manual_seed(ord(device))
    healed = []
    with GradientExchange.connect(address, session="s", device=device) as exchange:
        optimizer = NewtonOptimizer(model, sync=EveryBatch(exchange))
        optimizer.join()
        while (step := optimizer.current_step) < 6:
            if device == "c" and step == 1:
                with torch.no_grad():
                    model.first.weight += 1
            model.uses_middle = step < 2 or (device == "c" and not healed)
            x, y = torch.randn(8, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            if optimizer.last_result.is_healed:
                healed.append(step)
    return healed, model.state_dict()


def test_a_device_that_heals_in_a_step_sends_all_of_the_next_one():
    """What a layer told of the batch that was given up is not taken for that of a batch that skips the layer.

    The step in which it heals waits for it, because all devices are needed.
    """
    with embedded_coordinator() as coordinator, ThreadPoolExecutor(3) as pool:
        coordinator.create_session("s", SessionSettings(devices=3, digest_every=1))
        models = [Skipping() for _ in "abc"]  # the seed is that of all threads
        runs = [
            pool.submit(train, coordinator.address, device, model) for device, model in zip("abc", models, strict=True)
        ]
        (a, b, c) = [run.result() for run in runs]
    assert (a[0], b[0]) == ([], [])
    assert len(c[0]) == 1
    for name, tensor in a[1].items():
        assert torch.equal(tensor, b[1][name])
        assert torch.equal(tensor, c[1][name])
