"""Each sample's gradient by itself, clipped: what a privacy budget with the unit "sample" adds its noise to."""

import copy
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from edge_client.privacy.budget import PrivacyBudget, PrivacyBudgetError

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class SampleContribution(Protocol):
    """Who exchanges what the samples' gradients add up to."""

    @property
    def budget(self) -> PrivacyBudget:
        """With the unit "sample"."""

    def written(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Return gradients `[n, *shape]` by the parameters' names as they are exchanged, `[n, elements]`."""

    def take(self, total: Tensor, samples: int) -> None:
        """Take the sum of so many samples' gradients, written and clipped, `[elements]`."""


class SampleGradients:
    """Takes the place of `loss.backward()`: the gradients of the samples are clipped one by one, and added up.

    The samples run through a copy of the model at once, each as a batch of its own (`torch.func.vmap`). Make it before
    the optimizer, whose hooks look at whole batches. The parameters' `grad` stays as it is until the optimizer's step,
    which sets it to the mean of all devices.

    Args:
        model: is called with inputs `[1, *input_shape]`.
        loss: a mean over the batch, given outputs and targets.
        plan: of the optimizer that is made after it, such as `PrivateGradients`.
        chunk_size: so many samples' gradients are in memory at a time.

    Raises:
        PrivacyBudgetError: the unit is another, or samples of one batch change each other's outputs in the model.
        ValueError: there are hooks on the model already.

    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        plan: SampleContribution,
        *,
        chunk_size: int = 16,
    ) -> None:
        budget = plan.budget
        if budget.unit != "sample":
            raise PrivacyBudgetError(f"the unit of the privacy budget is {budget.unit!r}: take unit='sample'")
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                raise PrivacyBudgetError(
                    f"layer {name!r} mixes the samples of a batch, so that no sample has a gradient of its own: take "
                    "GroupNorm or LayerNorm for it"
                )
            if any(getattr(module, hooks) for hooks in _HOOKS):
                raise ValueError(f"layer {name!r} has hooks already: make SampleGradients before the optimizer")
        self._trained = model
        self._copy = copy.deepcopy(model)
        self._plan = plan
        self._chunk_size = chunk_size
        self._bound = budget.clip_norm

        def loss_of(parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
            outputs = torch.func.functional_call(self._copy, parameters, (inputs.unsqueeze(0),))
            return loss(outputs, targets.unsqueeze(0))

        self._of_samples = torch.func.vmap(
            torch.func.grad_and_value(loss_of), in_dims=(None, 0, 0), randomness="different"
        )

    def backward(self, inputs: Tensor, targets: Tensor) -> float:
        """Give the plan the sum of the samples' clipped gradients; several calls in one step add up.

        Args:
            inputs: `[n, *input_shape]`.
            targets: `[n, *target_shape]`.

        Returns:
            the mean loss of the samples.

        Raises:
            PrivacyBudgetError: the model or its loss cannot be differentiated sample by sample, or the step's samples
                are more than the budget's batch size.

        """
        self._copy.train(self._trained.training)
        values = {name: p.detach() for name, p in self._trained.named_parameters() if p.requires_grad}
        sums, losses = [], []
        for chunk in zip(torch.split(inputs, self._chunk_size), torch.split(targets, self._chunk_size), strict=True):
            try:
                gradients, of_samples = self._of_samples(values, *chunk)
            except RuntimeError as error:
                raise PrivacyBudgetError(
                    "the model or its loss cannot be differentiated sample by sample, which the unit 'sample' needs: "
                    f"{error}"
                ) from None
            written = self._plan.written(gradients).cpu().double()
            norms = torch.linalg.vector_norm(written, dim=1).clamp(min=1e-300)
            sums.append((self._bound / norms).clamp(max=1.0) @ written)
            losses.append(of_samples.sum().cpu())
        self._plan.take(torch.stack(sums).sum(0), len(inputs))
        return float(torch.stack(losses).sum()) / len(inputs)
