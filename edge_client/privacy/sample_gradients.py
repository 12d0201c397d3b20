"""Each sample's gradient by itself, clipped: what a privacy budget with the unit "sample" adds its noise to."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from edge_client.privacy.budget import PrivacyBudget, PrivacyBudgetError

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class SampleGradients:
    """Takes the place of `loss.backward()`: the gradients of the samples are clipped one by one, and added up.

    The samples run through a copy of the model at once, each as a batch of its own (`torch.func.vmap`). Make it before
    the optimizer, whose hooks look at whole batches.

    Args:
        model: is called with inputs `[1, *input_shape]`.
        loss: a mean over the batch, given outputs and targets.
        budget: with the unit "sample".
        chunk_size: so many samples' gradients are in memory at a time.

    Raises:
        PrivacyBudgetError: the unit is another, or samples of one batch change each other's outputs in the model.
        ValueError: there are hooks on the model already.

    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        budget: PrivacyBudget,
        *,
        chunk_size: int = 16,
    ) -> None:
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
        self._budget = budget
        self._chunk_size = chunk_size
        # A little less than the norm: the rounding of float32 must not take a gradient above the bound.
        self._bound = budget.clip_norm * (1 - 1e-6)

        def loss_of(parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
            outputs = torch.func.functional_call(self._copy, parameters, (inputs.unsqueeze(0),))
            return loss(outputs, targets.unsqueeze(0))

        self._of_samples = torch.func.vmap(
            torch.func.grad_and_value(loss_of), in_dims=(None, 0, 0), randomness="different"
        )

    def backward(self, inputs: Tensor, targets: Tensor) -> float:
        """Set each parameter's `grad` to the sum of the samples' clipped gradients over the budget's `batch_size`.

        Args:
            inputs: `[n, *input_shape]`, with n at most the budget's `batch_size`.
            targets: `[n, *target_shape]`.

        Returns:
            the mean loss of the samples.

        Raises:
            PrivacyBudgetError: there are more samples than the budget's batch size, or the model or its loss cannot
                be differentiated sample by sample.

        """
        if len(inputs) > self._budget.batch_size:
            raise PrivacyBudgetError(
                f"the batch has {len(inputs)} samples, and the privacy budget was made for {self._budget.batch_size}: "
                "take smaller batches, or a budget with a larger batch_size"
            )
        self._copy.train(self._trained.training)
        parameters = {name: p for name, p in self._trained.named_parameters() if p.requires_grad}
        values = {name: p.detach() for name, p in parameters.items()}
        sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
        total, size = 0.0, self._chunk_size
        for chunk in zip(torch.split(inputs, size), torch.split(targets, size), strict=True):
            try:
                gradients, losses = self._of_samples(values, *chunk)
            except RuntimeError as error:
                raise PrivacyBudgetError(
                    "the model or its loss cannot be differentiated sample by sample, which the unit 'sample' needs: "
                    f"{error}"
                ) from None
            squares = torch.stack([each.flatten(1).double().square().sum(1) for each in gradients.values()]).sum(0)
            scales = (self._bound / squares.sqrt().clamp(min=1e-300)).clamp(max=1.0)
            for name, each in gradients.items():
                sums[name] += torch.tensordot(scales.to(each), each, dims=1)
            total += float(losses.sum())
        for name, parameter in parameters.items():
            parameter.grad = sums[name] / self._budget.batch_size
        return total / len(inputs)
