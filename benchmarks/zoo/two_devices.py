"""A model on two devices, which train it through a real coordinator with batches of their own."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from benchmarks.zoo.case import Case
from benchmarks.zoo.checks import different, newton, plain_gradients, step
from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client import EveryBatch, GradientExchange

DEVICES = 2
SESSION = "zoo"


def devices_apart(case: Case, steps: int = 3) -> list[str]:
    """Return what differs between the devices at the end.

    And the gradients of their first step that are not the mean of those that plain autograd gives for their batches.
    """
    of_each = [plain_gradients(case, case.model(), number) for number in range(DEVICES)]
    models = [case.model() for _ in range(DEVICES)]
    # What a model draws at random comes from the process's one generator, with which the devices take turns.
    turn = threading.Lock()
    with embedded_coordinator() as coordinator, ThreadPoolExecutor(DEVICES) as pool:
        coordinator.create_session(SESSION, SessionSettings(devices=DEVICES))
        runs = [
            pool.submit(_train, case, model, number, steps, coordinator.address, turn)
            for number, model in enumerate(models)
        ]
        first, _ = [run.result() for run in runs]
    means = {name: torch.stack([gradients[name] for gradients in of_each]).mean(0) for name in of_each[0]}
    return [
        *(f"{name} in step 0" for name, mean in means.items() if not _is_close(first.get(name), mean)),
        *different(models[0].state_dict(), models[1].state_dict()),
    ]


def _train(
    case: Case, model: nn.Module, device: int, steps: int, address: str, turn: threading.Lock
) -> dict[str, Tensor]:
    """Train on one device, and return the gradients that the parameters have after the first step."""
    first: dict[str, Tensor] = {}
    with GradientExchange.connect(address, session=SESSION, device=f"device-{device}") as exchange:
        # Gradients that leave during backward leave with the samples that were seen.
        optimizer = newton(model, sync=EveryBatch(exchange, overlap=not case.are_samples_told))
        for number in range(device, DEVICES * steps, DEVICES):
            optimizer.zero_grad()
            with turn:
                case.seeded_loss(model, case.batch_of(number), number).backward()  # type: ignore[no-untyped-call]
            step(case, optimizer)
            if number == device:
                first = {
                    name: parameter.grad.clone()
                    for name, parameter in model.named_parameters()
                    if parameter.grad is not None
                }
        optimizer.synchronise()  # the buffers, such as running means
    return first


def _is_close(tensor: Tensor | None, expected: Tensor) -> bool:
    """Whether a tensor is what is expected, within the rounding of a sum of two."""
    return tensor is not None and float((tensor - expected).norm()) <= 1e-6 * float(expected.norm())
