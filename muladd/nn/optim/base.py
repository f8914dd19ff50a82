"""What all optimisers share: parameter groups, state, the learning rate, and skipping a step.

The step count, the learning rate and all state are tensors that are updated in place, so a step
inside `jit` is compiled once: nothing in it is a Python number that changes.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from muladd.errors import ArgumentError, FormatError
from muladd.ir import dtype as dt
from muladd.ir.dtype import DType
from muladd.tensor import Tensor, no_grad
from muladd.tensor.backend import is_tracing, waiting_beside

Schedule = Callable[[Tensor], Tensor]
State = dict[str, Tensor]
Group = dict[str, Any]  # "params", and one entry per setting


class Optimizer:
    """Updates parameters from their `.grad`.

    params: tensors, or groups {"params": tensors, setting: value, ...} where a setting overrides
    the optimiser's. lr: a number, or a schedule (see `muladd.nn.schedule`): a function from the
    number of steps done, a float32 tensor, to the rate.

    A subclass gives `start`, the state of one parameter before the first step, and `update`, the
    new value and state; and, if it has any, `start_shared` and `advance`, the scalars that a group
    shares.
    """

    def __init__(
        self, params: Iterable[Tensor] | Iterable[Group], lr: float | Schedule, **settings: Any
    ) -> None:
        who = type(self).__name__
        if isinstance(params, Tensor) or not isinstance(params, Iterable):
            raise ArgumentError(
                f"{who}: params are several tensors, such as model.parameters(), got {params!r:.80}"
            )
        given = list(params)
        if not given:
            raise ArgumentError(f"{who}: there are no parameters to train")
        groups: list[Any] = given if isinstance(given[0], Mapping) else [{"params": given}]
        self.groups: list[Group] = []
        self.step_count = Tensor(0, dtype=dt.int64)
        self.state: list[list[State]] = []
        self.shared: list[State] = []
        self.defaults: Group = {"lr": lr, **settings}
        for group in groups:
            self.add_group(group)

    # --- groups --------------------------------------------------------------------------------

    def add_group(self, group: Group) -> None:
        """Train more parameters; settings that the group does not name are the optimiser's."""
        who = type(self).__name__
        form = f"{who}: a group is {{'params': tensors}} and any of {', '.join(self.defaults)}"
        if not isinstance(group, dict):
            raise ArgumentError(f"{form}, got {group!r:.80}")
        odd = sorted(map(str, group.keys() - {"params", "scalars", *self.defaults}))
        if odd or "params" not in group:
            raise ArgumentError(
                f"{form}, " + (f"got {', '.join(odd)}" if odd else "its params are missing")
            )
        tensors = list(group["params"])
        known = {id(p) for p in self.parameters()}
        for p in tensors:
            if not isinstance(p, Tensor) or not p.requires_grad or not p.is_leaf:
                raise ArgumentError(
                    f"{who}: every parameter is a tensor with requires_grad=True, got {p!r:.80}"
                )
            if id(p) in known:
                raise ArgumentError(f"{who}: a parameter was given twice ({p!r:.80})")
            known.add(id(p))
        group = {**self.defaults, **group, "params": tensors}
        group["scalars"] = _widest(tensors)
        rate = group["lr"]
        if not callable(rate):
            if not hasattr(rate, "__float__") or not float(rate) >= 0:
                raise ArgumentError(
                    f"{who}: lr is a number of at least 0, or a schedule, got {rate!r:.80}"
                )
            group["lr"] = Tensor(float(rate), dtype=group["scalars"])
        self.check(group)
        self.groups.append(group)
        self.state.append([self.start(p, group) for p in tensors])
        self.shared.append(self.start_shared(group))
        with no_grad():
            for t in self._own_state():
                t.assign(t)  # memory of its own: zeros that are folded make another first step
        self._ready = False

    def parameters(self) -> list[Tensor]:
        return [p for group in self.groups for p in group["params"]]

    @property
    def lr(self) -> Tensor:
        """The rate of the first group for the step to come, as a scalar tensor."""
        return self._rate(self.groups[0])

    @lr.setter
    def lr(self, value: float | Tensor | Schedule) -> None:
        for group in self.groups:
            self.set_lr(group, value)

    def set_lr(self, group: Group, value: float | Tensor | Schedule) -> None:
        """Change a group's rate. A new number does not make `jit` trace again."""
        if callable(value) and not isinstance(value, Tensor) or callable(group["lr"]):
            group["lr"] = value if callable(value) else Tensor(value, dtype=group["scalars"])
        else:
            new = value if isinstance(value, Tensor) else Tensor(value, dtype=group["scalars"])
            group["lr"].assign(new.cast(group["scalars"]))

    def _rate(self, group: Group) -> Tensor:
        rate = group["lr"]
        if isinstance(rate, Tensor):
            return rate
        return rate(self.step_count.cast(dt.float32)).cast(group["scalars"])

    # --- what a subclass says ------------------------------------------------------------------

    def check(self, group: Group) -> None:
        """Raise ArgumentError for settings out of range."""
        for name, value in group.items():
            least = 0 if isinstance(value, int | float) and name != "lr" else None
            if least is not None and value < least:
                who = type(self).__name__
                raise ArgumentError(f"{who}: {name} must not be negative, got {value}")

    def start(self, parameter: Tensor, group: Group) -> State:
        """The state of one parameter before the first step."""
        return {}

    def start_shared(self, group: Group) -> State:
        """Scalars that all parameters of a group share, before the first step."""
        return {}

    def advance(self, shared: State, group: Group) -> State:
        """Those scalars in the step that is being made."""
        return {}

    def update(
        self, value: Tensor, gradient: Tensor, state: State, lr: Tensor, group: Group
    ) -> tuple[Tensor, State]:
        """(new value, new state) of one parameter; lr is a scalar tensor. group holds the settings
        and the shared scalars of this step."""
        raise NotImplementedError

    # --- the step ------------------------------------------------------------------------------

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def step(self, skip: Tensor | None = None) -> None:
        """Update every parameter that has a gradient; where `skip` (a bool scalar) is true, none.
        """
        if not self._ready and not is_tracing():
            self._realize()
        changed: list[Tensor] = [self.step_count]
        with no_grad():
            pairs: list[tuple[Tensor, Tensor]] = []
            for group, states, shared in zip(self.groups, self.state, self.shared):
                pairs += self._changes(group, states, shared)
            pairs.append((self.step_count, self.step_count + 1))
            for old, new in pairs:
                new = new.cast(old.dtype)
                old.assign(new if skip is None else skip.where(old.detach(), new))
                changed.append(old)
        if not is_tracing():
            self.step_count.realize(*changed[1:], *self._losses())

    def _realize(self) -> None:
        """Compute what parameters and state begin with, so that the first step is like all others
        and has the same program."""
        own = [self.step_count, *self.parameters(), *self._own_state()]
        if not waiting_beside(own):  # running statistics would be computed without the step
            own[0].realize(*own[1:])
        self._ready = True

    def _own_state(self) -> list[Tensor]:
        """All state but the step count and the rate."""
        states = [s for group in self.state for s in group] + self.shared
        return [tensor for state in states for tensor in state.values()]

    def _losses(self) -> list[Tensor]:
        """What backward() was called on: computed along with the step, or else it would be
        computed once more when its value is asked for."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        losses = [t for g in gradients for t in g._pending_beside() if t.ndim == 0]
        return list({id(t): t for t in losses}.values())

    def _changes(
        self, group: Group, states: list[State], shared: State
    ) -> list[tuple[Tensor, Tensor]]:
        """(tensor, its new value) of everything in a group that this step changes."""
        with_gradient = [
            (p, p.grad, s) for p, s in zip(group["params"], states) if p.grad is not None
        ]
        if not with_gradient:
            return []
        lr, new_shared = self._rate(group), self.advance(shared, group)
        pairs = [(shared[name], tensor) for name, tensor in new_shared.items()]
        for p, gradient, state in with_gradient:
            now = {**group, **{name: t.cast(p.dtype) for name, t in new_shared.items()}}
            new, new_state = self.update(
                p.detach(), gradient.cast(p.dtype), state, lr.cast(p.dtype), now
            )
            pairs.append((p, new))
            pairs += [(state[name], tensor) for name, tensor in new_state.items()]
        return pairs

    # --- saving --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """All state by name: "step", "<group>.<what>", "<group>.<parameter>.<what>"."""
        out = {"step": self.step_count}
        for g, (group, states) in enumerate(zip(self.groups, self.state)):
            if isinstance(group["lr"], Tensor):
                out[f"{g}.lr"] = group["lr"]
            out |= {f"{g}.{name}": tensor for name, tensor in self.shared[g].items()}
            for i, state in enumerate(states):
                out |= {f"{g}.{i}.{name}": tensor for name, tensor in state.items()}
        return out

    def load_state_dict(self, given: Mapping[str, Any]) -> None:
        """Take over saved state, in place. Raises FormatError unless names and shapes fit."""
        own = self.state_dict()
        wrong = sorted(own.keys() ^ given.keys())
        wrong += [n for n in own if n in given and tuple(given[n].shape) != tuple(own[n].shape)]
        if wrong:
            raise FormatError(
                f"{type(self).__name__}.load_state_dict: {', '.join(wrong[:6])} do not fit; is "
                "this the state of the same optimiser over the same parameters?"
            )
        with no_grad():
            for name, tensor in own.items():
                value = given[name]
                value = value if isinstance(value, Tensor) else Tensor(value.__array__())
                tensor.assign(value.cast(tensor.dtype).to(tensor.device))


def _widest(tensors: list[Tensor]) -> DType:
    """The dtype of a group's scalars: float32, or float64 if a parameter is."""
    return dt.float64 if any(t.dtype is dt.float64 for t in tensors) else dt.float32


def zeros(parameter: Tensor) -> Tensor:
    """Zeros with a parameter's shape, dtype and device."""
    return Tensor.zeros(*parameter.shape, dtype=parameter.dtype, device=parameter.device)


def scalar(value: float, group: Group) -> Tensor:
    """A scalar of a group's own, where its parameters are."""
    return Tensor(value, dtype=group["scalars"], device=group["params"][0].device)
