"""The same devices and seeds give the same model, whichever device happens to be first at the coordinator."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from coordinator.serving.server import EmbeddedCoordinator, embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client import EveryBatch, GradientExchange, NewtonOptimizer

STEPS = 6


def model_of_the_fleet() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def train(
    coordinator: EmbeddedCoordinator, session: str, model: nn.Module, index: int, pauses: np.random.Generator
) -> dict[str, torch.Tensor]:
    data = np.random.default_rng(index)
    samples = 5 + index
    with GradientExchange.connect(coordinator.address, session=session, device=f"d{index}") as exchange:
        optimizer = NewtonOptimizer(model, lr=0.05, sync=EveryBatch(exchange))
        for _ in range(STEPS):
            x = torch.from_numpy(data.normal(index, 1, (samples, 6)).astype(np.float32))
            y = torch.from_numpy(data.integers(0, 3, samples))
            time.sleep(0.02 * pauses.random())
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        optimizer.synchronise()
    return model.state_dict()


@pytest.mark.parametrize("devices", [4, 6])
@pytest.mark.parametrize("codec", ["fp32", "topk", "ternary", "sparse4", "sparse1"])
def test_two_trainings_end_with_the_same_bits(devices, codec):
    runs = []
    with embedded_coordinator() as coordinator:
        for run in range(2):
            session = f"run{run}"
            coordinator.create_session(session, SessionSettings(devices=devices, codec=codec, frame_bytes=1024))
            pauses = np.random.default_rng(run).spawn(devices)
            with ThreadPoolExecutor(devices) as pool:
                futures = [
                    pool.submit(train, coordinator, session, model_of_the_fleet(), index, pauses[index])
                    for index in range(devices)
                ]
                runs.append([future.result() for future in futures])
    first, *others = [state for run in runs for state in run]
    for state in others:
        assert all(torch.equal(tensor, state[name]) for name, tensor in first.items())
