"""DashSchedule: pre-launch, then dash, counted in optimizer steps."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from functools import cache
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from .adapter import Adapter
from .launch import LaunchReport

_DASH = ("dsigma", "U", "V", "indices")  # what the dash adds to a LoRA


class DashSchedule:
    """Launches an adapter's dash once, right after optimizer step number `prelaunch_steps` (paper: 100).

    Call `step()` after every `optimizer.step()`: what counts is updates of the weights, whatever the number of
    forward passes, accumulated micro-batches or evaluations between them. Several adapters (a UNet's and a text
    encoder's) may share one schedule. With dash_k = 0 it counts and never launches: plain LoRA.

    optimizer: the one that updates the shifts (or accelerate's wrapper of it, or several); None: torch's optimizers
    that update the adapter are noticed when they step. Its state of them is cleared at the launch, so that it begins
    there, as in the paper's code: Adam's step count has run since step 0 otherwise, its bias correction is spent on
    gradients of zero, and the first updates of the shifts are up to twice too large.
    seed: of the control selection="random".
    """

    def __init__(
        self,
        adapter: Adapter | Mapping[str, Adapter],
        prelaunch_steps: int = 100,
        optimizer: Any = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(prelaunch_steps, int) or prelaunch_steps < 1:
            raise ValueError(
                f"prelaunch_steps is a whole number of 1 or more, got {prelaunch_steps!r}; "
                "to dash from the start call adapter.launch() yourself"
            )
        self.adapters = dict(adapter) if isinstance(adapter, Mapping) else {"": adapter}
        self.prelaunch_steps = prelaunch_steps
        self.optimizers = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer] if optimizer else []
        self.seed = seed
        self.steps = 0
        self._checked = False
        if not self.optimizers:
            _listen()
            _waiting.add(self)

    @property
    def launched(self) -> bool:
        """True once every adapter with dash_k > 0 has its directions; False for plain LoRA."""
        dashing = self._dashing()
        return bool(dashing) and all(a.launched for a in dashing)

    def step(self) -> LaunchReport | None:
        """Count one optimizer step. Returns a report on the step that launched, None on all others.

        Raises ValueError at the first step for an optimizer without the shifts.
        """
        if not self._checked:
            self._check_optimizers()
            self._checked = True
        self.steps += 1
        waiting = [a for a in self._dashing() if not a.launched]
        if self.steps < self.prelaunch_steps or not waiting:
            return None
        _waiting.discard(self)
        reports = [a.launch(self.seed) for a in waiting]
        self._forget_shifts(waiting)
        layers = sum(r.layers for r in reports)
        mean = sum(r.mean_relative_index * r.layers for r in reports) / layers
        return LaunchReport(layers, sum(r.seconds for r in reports), mean, sum(r.in_full for r in reports))

    def notice(self, optimizer: Optimizer) -> None:
        """Take an optimizer that has stepped, if it updates tensors of the adapters."""
        if optimizer in self.optimizers:
            return
        updated = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if any(id(p) in updated for a in self._dashing() for _, w in a.weights() for p in (w.A, w.B, w.dsigma)):
            self.optimizers.append(optimizer)
            self._checked = False

    def _check_optimizers(self) -> None:
        """Raises ValueError for an optimizer that updates A and B of an adapter and not its shifts: it was made before
        these were there, and they would never be trained."""
        theirs = {id(p) for o in self.optimizers for g in getattr(o, "optimizer", o).param_groups for p in g["params"]}
        for adapter in self._dashing():
            for module, w in adapter.weights():
                factors = {id(w.A), id(w.B)} & theirs
                if factors and w.dsigma.numel() and id(w.dsigma) not in theirs:
                    raise ValueError(
                        f"the optimizer updates A and B of {module} and not its shifts, which would never be trained; "
                        "make it after the adapter, of all its parameters that require a gradient"
                    )

    def _forget_shifts(self, adapters: list[Adapter]) -> None:
        """Clear what the optimizers remember of the shifts: their gradients were zero until now."""
        shifts = [w.dsigma for adapter in adapters for _, w in adapter.weights()]
        for optimizer in self.optimizers:
            state = getattr(optimizer, "optimizer", optimizer).state  # accelerate's wrapper, or the optimizer itself
            for parameter in shifts:
                state.pop(parameter, None)

    def state_dict(self) -> dict[str, Any]:
        """Steps, phase, and every layer's indices, dsigma, U and V by "adapter/module.key": complete for a resume.

        A and B are in the model's and the adapter's own state_dict().
        """
        tensors = {
            f"{name}/{key}": tensor.clone()
            for name, adapter in self.adapters.items()
            for key, tensor in adapter.state_dict(_DASH).items()
        }
        return {"steps": self.steps, "prelaunch_steps": self.prelaunch_steps, "tensors": tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, in place. Raises ValueError, before anything changes, when the state belongs to other
        adapters, layers or shapes."""
        names = {key.partition("/")[0] for key in state["tensors"]}
        if names != self.adapters.keys():
            raise ValueError(f"the state is of adapters {sorted(names)}, this schedule has {sorted(self.adapters)}")
        merged = {}
        for name, adapter in self.adapters.items():
            prefix = f"{name}/"
            dash = {k.removeprefix(prefix): t for k, t in state["tensors"].items() if k.startswith(prefix)}
            merged[name] = {**adapter.state_dict(("A", "B")), **dash}
            adapter.check_state(merged[name])
        for name, adapter in self.adapters.items():
            adapter.load_state_dict(merged[name])
        self.steps = state["steps"]
        self.prelaunch_steps = state["prelaunch_steps"]

    def _dashing(self) -> list[Adapter]:
        return [a for a in self.adapters.values() if a.config.dash_k]


_waiting: weakref.WeakSet[DashSchedule] = weakref.WeakSet()  # for the launch, without a named optimizer


@cache
def _listen() -> None:
    """Have torch tell of every optimizer's steps. One hook for good: torch cannot lose one while it calls them."""
    register_optimizer_step_post_hook(_stepped)


def _stepped(optimizer: Optimizer, *_: Any) -> None:
    for schedule in list(_waiting):
        schedule.notice(optimizer)
