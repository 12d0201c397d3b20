"""NewtonOptimizer: a torch optimizer whose step is the inverse Hessian times the gradient of all devices together."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from edgenewton.common.evaluation import Evaluation
from edgenewton.common.options import check_choice, flatten
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from edge_client.curvature.batch import Batch
from edge_client.curvature.preconditioner import Preconditioner
from edge_client.devices import device_of, on_device
from edge_client.exchange import StepResult
from edge_client.optim.averaging import RunningAverage
from edge_client.optim.decrease import DecreaseWatch
from edge_client.optim.gradient_hooks import GradientHooks
from edge_client.optim.groups import ParameterGroups
from edge_client.optim.loss_scale import LossScaleWatch
from edge_client.optim.model_checks import check_parameters, model_and_params
from edge_client.optim.options import Curvature, IterateAverage, Refresh, TrustRegion, group_defaults
from edge_client.optim.ownership import take_over
from edge_client.optim.refresh import RefreshSchedule
from edge_client.optim.saved_state import in_present_names
from edge_client.optim.schedules import Schedule, StepFactor
from edge_client.optim.whole_state import WholeState
from edge_client.sync.every_batch import EveryBatch
from edge_client.sync.plan import Report, Subject, SyncPlan, Update

Nonfinite = Literal["raise", "skip"]

_AVERAGING = IterateAverage()


class NewtonOptimizer(torch.optim.Optimizer):
    """Second-order steps on one device, or on many that share their gradients.

    With the synchronised gradient G of a layer and its curvature estimate H, the direction is P = (H + damping)^-1 G,
    scaled down for all layers together where the step would leave the trust region `kl_clip`, and for a layer where it
    would change the weights by more than the part `update_clip`. Then, as in SGD with momentum, B = momentum * B + P
    and W -= lr * B. Parameters without a curvature estimate take their gradient for P; a warning names their layers.
    The loss must be a mean over the samples of the batch.

    While the user's own `backward` runs, hooks hand each layer's gradient to the plan `sync`, which decides what leaves
    the device; `step` waits for the synchronised values, inverts, and updates. The constructor opens no connection:
    the first `zero_grad` or forward takes the device's place among the others, or `join` before. Of several optimizers
    for the same parameters the last one counts: it takes over the hooks, and the one before leaves its session.

    Args:
        params_or_model: the model whose parameters that require gradients are optimised; hooks are put on its layers.
            Or groups of its parameters with options of their own (lr, momentum, weight_decay, damping), and `model`. To
            compile the model, compile it after the optimizer was made.
        lr: step size; None for what suits the estimator.
        model: the model that groups of parameters are of.
        momentum: weight of the past directions; None for what suits the estimator.
        weight_decay: decoupled: W -= lr * weight_decay * W.
        curvature: how the inverse Hessian is estimated; a name alone chooses the estimator.
        trust: how far a step may go.
        refresh: when the curvature is renewed.
        averaging: which average of the iterates `averaged` gives; None for the last iterate.
        schedule: what `lr` is multiplied with in a step, by the step's number; the bounds of `trust` shrink with it, so
            that the step does. None for a constant step size. See `follow` for torch's own schedulers.
        sync: how devices synchronise; None for one device alone.
        maximize: go up the loss instead of down.
        nonfinite: what becomes of a batch with a gradient that is NaN or infinite: "raise" is an error, "skip" lets
            this device take part in the step with no sample (`skipped` counts them).

    Raises:
        ValueError: an option has an impossible value, or the model cannot be trained; the text names it.

    """

    _step_supports_amp_scaling = True
    """Tells torch.amp.GradScaler to hand over its scale: see `LossScaleWatch`."""

    def __init__(
        self,
        params_or_model: nn.Module | Iterable[Any],
        lr: float | None = None,
        *,
        model: nn.Module | None = None,
        momentum: float | None = None,
        weight_decay: float = 0.0,
        curvature: Curvature | str = "kfac",
        trust: TrustRegion | None = None,
        refresh: Refresh | None = None,
        averaging: IterateAverage | None = _AVERAGING,
        schedule: StepFactor | None = None,
        sync: SyncPlan | None = None,
        maximize: bool = False,
        nonfinite: Nonfinite = "raise",
    ) -> None:
        curvature = Curvature(curvature) if isinstance(curvature, str) else curvature
        refresh = refresh if refresh is not None else Refresh()
        averaging = averaging if averaging is not None else IterateAverage(0.0)
        suitable = curvature.estimator_type.defaults
        trust = trust if trust is not None else TrustRegion()
        bounds = trust.bounds(suitable)
        defaults = group_defaults(suitable, lr, momentum, weight_decay, maximize=maximize)
        check_choice("nonfinite", nonfinite, get_args(Nonfinite))
        schedule = schedule if schedule is not None else Schedule()
        self._groups = ParameterGroups(self, schedule, trust, bounds)
        model, params = model_and_params(params_or_model, model)
        self._is_made = self._is_closed = False
        self._successor = ""
        super().__init__(params, defaults | {"damping": bounds.damping})
        check_parameters(model, self.param_groups)
        self._model = model
        self.last_result: StepResult | None = None
        """Of the last step or average."""
        self.exchange_s = 0.0
        """Seconds that the last step waited for the other devices, after its own backward."""
        self.skipped = 0
        """Batches of this device that took part with no sample, because a gradient was not finite."""
        self._adaptive = DecreaseWatch(trust.adapt_every)
        self._report = Report()
        self._is_sending = True
        self._is_fresh = True
        """Whether gradients were set to nothing since the last step."""
        self._is_captured: bool | None = None
        """Whether the batch's curvature statistics are used; None until a layer asks."""
        self._loss_scale = LossScaleWatch()
        self._schedule = RefreshSchedule(refresh)
        self._preconditioner = Preconditioner(model, self._groups.by_parameter(), curvature.estimator_type, curvature)
        self._average = RunningAverage(averaging, model, self._groups.by_parameter().keys())
        self._sync = sync if sync is not None else EveryBatch()
        if self._sync.is_joined and not self._sync.is_alone:
            raise ValueError(
                "the plan has its place in a session with another optimizer: close its exchange, and make a plan with "
                "an exchange that you connect anew"
            )
        take_over(self._groups.by_parameter(), self._yield)
        self._batch = Batch(
            model,
            self._preconditioner.layers,
            before=self.join,
            is_captured=self._wants_statistics,
            samples_fisher=curvature.fisher == "sampled",
        )
        self._sync.attach(
            Subject(
                model,
                self._preconditioner.layers,
                self._batch,
                self._schedule.updates_factors,
                self._adaptive.scalars,
                skips_nonfinite=nonfinite == "skip",
                apply=self._take,
                average=self._average.take,
                damping_of=lambda weight: float(self._groups.by_parameter()[weight]["damping"]),
            )
        )
        parts = self._preconditioner, self._schedule, self._average, self._adaptive
        self._saved = WholeState(self, model, self._groups, *parts, self._sync)
        self._sync.replica.register("optimizer", self._saved.take_common, self._take_over)
        groups = {"curvature": curvature, "trust": trust, "refresh": refresh, "averaging": averaging}
        self._options = flatten(**defaults, **groups) | bounds._asdict()
        if isinstance(schedule, Schedule) and not schedule.is_constant:
            self._options |= flatten(schedule=schedule)
        self._hooks = GradientHooks(model, self._after_gradient)
        self._is_made = True

    @property
    def current_step(self) -> int:
        """Number of the step that is on, or comes next."""
        return self._sync.step

    @property
    def curvature_s(self) -> float:
        """Seconds that the last step took to update and invert the curvature."""
        return self._preconditioner.update_s

    def join(self) -> None:
        """Take this device's place among the others, unless it has it; the model then has the state that all share.

        Raises:
            ExchangeError: the coordinator is down or refuses this device.

        """
        if self._sync.is_joined:
            return
        self._sync.join({name: str(value) for name, value in (self._options | dict(self._sync.options)).items()})
        self._schedule.begin(self.current_step)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the last batch, also of one that no step was made of; the first time, `join`."""
        self._average.check_trainable()
        self.join()
        if self._batch.has_gradients or self._sync.has_left:
            self._sync.discard()
        self._loss_scale.forget()
        self._hooks.forget()
        self._is_captured = None
        self._is_fresh = True
        self._take_in_unfrozen()
        super().zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of the model's parameters, which may have been frozen until now.

        Raises:
            RuntimeError: the devices of a session have agreed on its tensors already.

        """
        if not self._is_made:
            super().add_param_group(param_group)
            return
        self._sync.check_extensible()
        super().add_param_group(param_group)
        try:
            check_parameters(self._model, self.param_groups)
        except ValueError:
            self.param_groups.pop()
            raise
        self._extend()

    def _take_in_unfrozen(self) -> None:
        """Optimise parameters of a group that were frozen when it was made."""
        if self._hooks.lacks_any(self._groups.by_parameter()):
            self._sync.check_extensible()
            self._extend()

    def _extend(self) -> None:
        groups = self._groups.by_parameter()
        self._batch.add_layers(self._preconditioner.extend(self._model, groups))
        self._sync.extend()
        self._average.extend(groups.keys())
        self._hooks.extend()

    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        reevaluate: Callable[[], float] | None = None,
        samples: int | None = None,
    ) -> Any:
        """Wait for the synchronised gradients, invert the curvature, and update the parameters.

        Args:
            closure: computes the loss and its gradients anew; what it returns is returned.
            reevaluate: computes the loss of the same batch without gradients; adaptive damping calls it after the
                update every `adapt_every` steps. Needs the loss from before, from `closure` or `report`.
            samples: how many samples the batch had, where the layers' inputs do not show it: it is the weight of this
                device in the mean.

        Raises:
            ExchangeError: the step did not commit; the parameters are unchanged, and the batch is given up.
            RuntimeError: gradients were changed after they had left; the text names the way that works.
            ValueError: adaptive damping lacks `reevaluate` or the loss.

        """
        if self._is_closed:
            raise RuntimeError(
                self._successor or "the optimizer is closed: its hooks are off the model, and it sees no batch any more"
            )
        self._average.check_trainable()
        self.join()
        self._take_in_unfrozen()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            self.report(loss.item() if isinstance(loss, Tensor) else float(loss))
        before = self._report.loss
        compares = self._adaptive.compares(self.current_step, before, reevaluate)
        began = time.perf_counter()
        self._is_captured = None
        report = self._complete_report(samples)
        update = self._sync.before_update(report)
        self.exchange_s = time.perf_counter() - began
        self._report = Report()
        self._adaptive.forget()
        self._loss_scale.forget()
        self._is_fresh = False
        self._hooks.forget()
        self._take(update)
        exchanged = self._sync.after_update()
        self.last_result = result = update.result if exchanged is None else exchanged
        for parameter, gradient in update.gradients.items():
            if parameter.grad is not gradient:
                parameter.grad = gradient  # what was applied, for whoever looks at it
        if compares and reevaluate is not None and not result.is_healed:
            self._adaptive.achieve(before - float(reevaluate()))
        return loss

    def report(self, loss: float, evaluation: Evaluation | None = None) -> None:
        """Say how this batch went; user interfaces show it. Call it before `step`."""
        self._report = Report(loss, evaluation)

    def follow(self, scheduler: LRScheduler) -> None:
        """Let a scheduler of torch set the groups by the number of the session's step; do not step it yourself.

        So a device that missed steps, came late or was restarted has the values that all others have. The bounds of the
        trust region shrink with the learning rate, from the one that the scheduler was made with (of OneCycleLR, from
        its largest), so that the step does.

        Raises:
            ValueError: the scheduler is another optimizer's, was stepped already, or follows a device's own loss.

        """
        self._groups.follow(scheduler)

    def sample_fisher(self, loss: Tensor) -> None:
        """Take the curvature's gradients from `loss`, formed with targets that `sample_targets` drew.

        Call it between forward and backward with fisher="sampled"; the graph is kept for the backward of the real
        loss, which must be the same function of the outputs.
        """
        self._batch.sample_fisher(loss)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Accumulate gradients: inside, a backward sends nothing; the first one after it sends the sum.

        For the gradient, and the curvature, of the whole batch divide the loss of each part by their number.
        """
        self._is_sending = False
        try:
            yield
        finally:
            self._is_sending = True

    @torch.no_grad()
    def synchronise(self) -> None:
        """Make the devices' models identical: average buffers, and in local scope parameters. Call it at the end.

        Raises:
            ExchangeError: the step did not commit.

        """
        self._average.check_trainable()
        self.join()
        self._is_captured = None
        update = self._sync.average()
        if update is not None:
            self._take(update)
            self.last_result = update.result

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the parameters be, for a while, the average of the iterates: to evaluate, serve or save the model.

        With an exchange after every batch each update makes an iterate, else each exchange that leaves all devices with
        the same parameters. Before the first, and with `averaging=None`, the model stays as it is; so it does in a
        block within another. Gradients and graphs from before stay valid, because the values come back.
        """
        with self._batch.paused(), self._average.held():
            yield

    def close(self) -> None:
        """Take the hooks off the model; the exchange stays open. No step can be taken any more."""
        self._is_closed = True
        self._batch.remove()
        self._hooks.remove()

    def _yield(self) -> None:
        """Make way for another optimizer of the same parameters, as a notebook's cell makes one when it runs again."""
        if self._is_closed:
            return
        self._successor = "another optimizer was made for this model since, and has taken its hooks over: step that one"
        self.close()
        self._sync.leave("another optimizer was made for its model")

    def state_dict(self) -> dict[str, Any]:
        """Return the state of parameters, groups and curvature."""
        return self._saved.take() | {"sync": self._sync.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state that `state_dict` gave; before `join` it is what this device begins with.

        Raises:
            ValueError: it belongs to another model; the text names the layers.

        """
        self._average.check_trainable()
        state = on_device(in_present_names(state_dict), device_of(self._model))
        sync = state.pop("sync", {"step": 0})
        self._is_captured = None
        self._saved.load(state)
        self._sync.load_state_dict(sync)

    def _take_over(self, state: dict[str, Any]) -> None:
        """Go on from where another device is."""
        self._is_captured = None
        self._saved.load_common(state)

    # ------------------------------------------------------------------ the step itself

    def _wants_statistics(self) -> bool:
        """Whether the curvature statistics of the batch that is on are used."""
        if self._is_captured is None:
            by_schedule = self._schedule.updates_factors(self.current_step)
            self._is_captured = self._sync.wants_statistics(by_schedule=by_schedule)
        return self._is_captured

    def _after_gradient(self, parameter: Tensor) -> None:
        self._average.check_trainable()
        if self._hooks.is_anew(parameter):
            self._batch.begin_anew()
        self._batch.confirm()
        self._loss_scale.note(parameter)
        if self._wants_statistics() and (state := self._preconditioner.layer_of(parameter)) is not None:
            self._batch.digest(state, self.current_step, is_fresh=self._is_fresh)
        if self._is_sending:
            self._sync.on_gradient(parameter)

    def _complete_report(self, samples: int | None) -> Report:
        report = replace(
            self._report,
            samples=samples,
            scalars=self._adaptive.told(self.current_step),
            hyperparameters=self._groups.hyperparameters(self.current_step),
        )
        return self._loss_scale.added_to(report, self, self._sync)

    @torch.no_grad()
    def _take(self, update: Update) -> None:
        """Apply a committed step, whether or not this device contributed to it."""
        self.skipped += update.is_skipped
        if not update.gradients or not update.result.samples:  # or every device has skipped its batch
            return
        self._adaptive.receive(update.scalars)
        step = update.result.step
        factor = self._groups.factor(step)
        refreshes = self._schedule.inverts(step) if update.refreshes is None else update.refreshes
        directions = self._preconditioner.step(
            update.gradients,
            update.statistics,
            damping_of=self._groups.damping_of(step, self._adaptive.factor) if refreshes else None,
        )
        bounded = self._groups.bounded(directions, step, factor)
        self._adaptive.predict(bounded)
        self._groups.descend({**update.gradients, **bounded.directions}, factor)
        if self._sync.is_shared:
            self._average.take()
