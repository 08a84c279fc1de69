"""Follows the parameters of a module: which there are, which are trained, which a backward pass has reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.nn.parameter import UninitializedParameter
from torch.utils.hooks import RemovableHandle

from itwinai.compat import torch as compat_torch
from itwinai.errors import ConfigurationError


def can_require_grad(parameter: Tensor) -> bool:
    """Return whether a parameter may be trained at some time, now or when it is unfrozen."""
    return parameter.is_floating_point() or parameter.is_complex()


def refuse_lazy(module: nn.Module) -> None:
    """Refuse parameters without a shape, which workers would make up by themselves.

    Raises:
        ConfigurationError: there are some.
    """
    lazy = [name for name, parameter in module.named_parameters() if isinstance(parameter, UninitializedParameter)]
    if lazy:
        raise ConfigurationError(
            f"{shortened(lazy)} of {type(module).__name__} have no shape yet: lazy layers get theirs in a first "
            "forward pass, where all workers have to have the same weights already. Run one in configure_model."
        )


def shortened(names: Sequence[str]) -> str:
    """Return the first of many names, in one line."""
    return f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"


@dataclass(frozen=True)
class Change:
    """How the parameters of a module differ from what they were.

    Attributes:
        new: names under which there is another parameter than before, or one where there was none.
        gone: names under which there is none any more.
        unfrozen: names of known parameters that require a gradient since then.
        frozen: names of known parameters that require none since then.
    """

    new: tuple[str, ...]
    gone: tuple[str, ...]
    unfrozen: tuple[str, ...]
    frozen: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.new or self.gone or self.unfrozen or self.frozen)


class ParameterMonitor:
    """Notices at little cost when parameters of a module are added, replaced, frozen or unfrozen.

    Args:
        module: the module.

    Attributes:
        parameters: those that were there at the last look, by name.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.parameters = dict(module.named_parameters())
        self._trained = self._flags()
        self._registered = False
        # Of all modules of this process, as torch has no others: a look at this one tells whether it was meant.
        self._handles: list[RemovableHandle] = [
            nn.modules.module.register_module_parameter_registration_hook(self._note),
            nn.modules.module.register_module_module_registration_hook(self._note),
        ]

    def _note(self, *_: Any) -> None:
        self._registered = True

    def _flags(self) -> list[bool]:
        return [parameter.requires_grad for parameter in self.parameters.values()]

    def may_have_changed(self) -> bool:
        """Return whether a look is worth its time."""
        return self._registered or self._flags() != self._trained

    def new(self) -> tuple[str, ...]:
        """Return the names of parameters that were registered since the last look."""
        if not self._registered:
            return ()
        now = dict(self.module.named_parameters())
        return tuple(name for name, parameter in now.items() if self.parameters.get(name) is not parameter)

    def look(self) -> Change:
        """Return what has changed since the last look."""
        before, flags = self.parameters, dict(zip(self.parameters, self._trained, strict=True))
        now = self.parameters = dict(self.module.named_parameters())
        self._trained, self._registered = self._flags(), False
        known = [name for name, parameter in now.items() if before.get(name) is parameter]
        return Change(
            new=tuple(name for name, parameter in now.items() if before.get(name) is not parameter),
            gone=tuple(name for name in before if name not in now),
            unfrozen=tuple(name for name in known if now[name].requires_grad and not flags[name]),
            frozen=tuple(name for name in known if not now[name].requires_grad and flags[name]),
        )

    def end(self) -> None:
        """Watch no longer."""
        for handle in self._handles:
            handle.remove()


class BackwardHooks:
    """Follows backward passes, called by the strategy or by code of the module (``loss.backward()``).

    A pass that the strategy runs is announced by `begin` and `end`, and what runs inside it, as the passes of
    reentrant checkpoints, belongs to it. Any other pass counts by itself.

    Args:
        parameters: what to follow, by name; also those that are frozen now.
        finish: called at the end of a pass, before the call of ``backward`` returns.
        weight: of gradients of passes that the strategy has not weighed, because it does not run them.
        before: called with the name of a parameter before its gradient changes.

    Attributes:
        reached: the parameters that have got a gradient since `finish` was called last.
        repeated: whether one of them got gradients several times in one pass, from passes inside it.
        nested: whether one of them got its gradient in a pass inside another.
        paused: whether gradients only accumulate now, so that `finish` is not called.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        finish: Callable[[], None],
        weight: Callable[[], float],
        before: Callable[[str], None] | None = None,
    ) -> None:
        self.reached: set[str] = set()
        self.repeated = self.nested = self.paused = False
        self._finish = finish
        self._weight = weight
        self._before = before
        self._within = self._finished = False
        self._outermost: int | None = None
        self._reached_in_pass: set[str] = set()
        self._passes: set[int] = set()
        self._nodes: list[Node] = []  # torch itself keeps them no longer than a pass
        self._handles: list[RemovableHandle] = []
        for name, parameter in parameters.items():
            if can_require_grad(parameter):
                self._nodes.append(accumulator(parameter))
                self._handles.append(self._nodes[-1].register_prehook(partial(self._reach, name)))

    def begin(self, loss: Tensor) -> None:
        """Announce a pass of the strategy, whose loss is weighed.

        Args:
            loss: where the pass begins.
        """
        self._within, self._finished, self._outermost = True, False, None
        self._reached_in_pass.clear()
        if loss.requires_grad:
            loss.register_hook(self._enter)

    def end(self) -> None:
        """Announce that the pass of the strategy is over."""
        self._finish_announced()  # where the module's own backward has left the loss out
        self._within = False

    def remove(self) -> None:
        """Follow no longer."""
        for handle in self._handles:
            handle.remove()
        self._nodes.clear()

    def _enter(self, gradient: Tensor) -> None:
        if self._within:
            self._outermost = compat_torch.backward_pass()
            compat_torch.after_backward_pass(self._finish_announced)

    def _reach(self, name: str, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._before is not None:
            self._before(name)
        self.reached.add(name)
        this_pass = compat_torch.backward_pass()
        if self._within:
            self.nested |= self._outermost is not None and this_pass != self._outermost
            self.repeated |= name in self._reached_in_pass
            self._reached_in_pass.add(name)
            return None
        if this_pass not in self._passes:
            self._passes.add(this_pass)
            compat_torch.after_backward_pass(partial(self._leave, this_pass))
        weight = self._weight()
        return None if weight == 1.0 else tuple(gradient * weight for gradient in gradients)

    def _leave(self, this_pass: int) -> None:
        self._passes.discard(this_pass)
        self._act()

    def _finish_announced(self) -> None:
        if not self._finished:
            self._finished = True
            self._act()

    def _act(self) -> None:
        if not self.paused:
            self._finish()
            self.reached.clear()
            self.repeated = self.nested = False


def accumulator(parameter: Tensor) -> Node:
    """Return the node that adds to the gradient of a parameter, which may be frozen."""
    trained = parameter.requires_grad
    parameter.requires_grad_(True)
    node = get_gradient_edge(parameter).node
    parameter.requires_grad_(trained)
    return node
