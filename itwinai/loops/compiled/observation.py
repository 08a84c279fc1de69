"""Watches a training step while it is traced: what it reads is compared in later steps, what it changes is refused."""

from __future__ import annotations

import enum
import inspect
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import numpy
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from itwinai.compat import torch_compile
from itwinai.errors import CompileStepError
from itwinai.loops.compiled.live_number import Inputs, LiveNumber

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_PLAIN = (bool, str, bytes, type(None), torch.dtype, torch.device, torch.Size, enum.Enum, type)
_CODE = (FunctionType, BuiltinFunctionType, MethodType)
_OF_MODULES = frozenset(vars(nn.Module())) - {"training"} | {"_trainer", "_fabric", "_current_fx_name", "log"}
_LEAVES = 256  # of an object that is compared in each step
_DEPTH = 4
_LIVE = ("current_epoch", "global_step")


class Guards:
    """Comparisons that decide whether a graph still does what the Python code would do."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, str]] = []  # what it is about, and the expression
        self.names: dict[str, Any] = {}

    def add(self, about: str, expression: str, **values: Any) -> None:
        """Add a comparison.

        Args:
            about: what is compared, for people.
            expression: Python, with the names of values in braces.
            **values: what the names stand for.
        """
        own = {name: f"v{len(self.names) + index}" for index, name in enumerate(values)}
        self.names.update({own[name]: value for name, value in values.items()})
        self.parts.append((about, expression.format(**own)))

    def function(self) -> Callable[[], bool]:
        """Return all comparisons as one function."""
        checks = " and ".join(f"({expression})" for _, expression in self.parts) or "True"
        # A function of its own source runs in a fraction of the time of a loop over comparisons.
        made: Callable[[], bool] = eval(f"lambda: {checks}", dict(self.names))  # noqa: S307
        return made

    def failed(self) -> list[str]:
        """Return what is not as it was."""
        return [about for about, expression in self.parts if not eval(expression, dict(self.names))]  # noqa: S307


class Deferred:
    """Stands for what a torchmetric returns in a traced step: it is computed when the graph has run.

    Args:
        call: number of the call among those of the step.
        key: which of a collection's values; None for a single metric.
    """

    def __init__(self, call: int, key: str | None = None) -> None:
        self.call, self.key = call, key

    def __getattr__(self, name: str) -> Any:
        raise CompileStepError(
            f"training_step computes with what a torchmetric returns ('{name}' of it)",
            "Log it with self.log, or compute it from the predictions.",
        )

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls(0).value  # noqa: B018


class Observation:
    """What one trace of a training step reads and does.

    Args:
        module: the module.
        trainer: its trainer.
        fakes: stand-ins of tensors.
        changing: attributes that have changed between traces, as (id of the owner, name): numbers among them become
            inputs of the graph.
    """

    def __init__(
        self,
        module: LightningModule,
        trainer: Trainer,
        fakes: torch_compile.FakeTensors,
        changing: set[tuple[int, str]],
    ) -> None:
        self.module, self.trainer, self.fakes, self.changing = module, trainer, fakes, changing
        self.guards = Guards()
        self.inputs = Inputs()
        self.calls: list[tuple[Any, ...]] = []  # of self.log and of metrics, in their order
        self.written: list[tuple[dict[str, Any], str, Tensor]] = []
        self.cells: list[tuple[dict[str, Any], str]] = []
        self.sources: dict[str, tuple[int, str]] = {}  # of guards that a change of an attribute can break
        self._containers: list[tuple[Any, Any]] = []  # that the step could change, and copies of them
        self._read: dict[tuple[int, str], tuple[Any, Any]] = {}
        self._names = {id(one): name for name, one in module.named_modules(remove_duplicate=False)}

    # ---------------------------------------------------------------------------------------------- numbers

    def live(self, about: str, read: Callable[[], Any]) -> LiveNumber:
        """Return a number that stays one in the graph."""
        return LiveNumber(about, read, self._note, self._as_tensor)

    def _note(self, about: str, decide: Callable[[], Any], decision: Any) -> None:
        self.guards.add(about, "{decide}() == {decision}", decide=decide, decision=decision)

    def _as_tensor(self, read: Callable[[], float]) -> Tensor:
        return self.fakes.of(self.inputs.add(read))

    # ----------------------------------------------------------------------------------------------- reading

    def read(self, owner: nn.Module, own: dict[str, Any], name: str, value: Any) -> Any:
        """Note that an attribute is read; return what the step sees of it."""
        if _is_of_torch(owner, name):
            return value
        key = (id(owner), name)
        if key in self._read:
            first, seen = self._read[key]
            return seen if value is first else value
        about = ".".join(filter(None, ("self", self._names.get(id(owner), "?"), name)))
        seen = value
        if isinstance(value, (Tensor, nn.Module)):
            if not isinstance(value, Tensor):
                self.guards.add(about, "{own}.get({name}) is {value}", own=own, name=name, value=value)
        elif type(value) in (int, float) and key in self.changing:
            seen = self.live(about, lambda: own[name])
            self.guards.add(about, "type({own}.get({name})) in {kinds}", own=own, name=name, kinds=(int, float))
        else:
            self.sources[about] = key
            if isinstance(value, (list, dict, set)):
                self._containers.append((value, value.copy()))
            self.watch(about, lambda: own.get(name), value)
        self._read[key] = (value, seen)
        return seen

    def watch(self, about: str, read: Callable[[], Any], value: Any) -> None:
        """Compare a value of Python's in each step with what it is now."""
        if isinstance(value, (bool, type(None), *_CODE)):
            check = "{read}() == {value}" if isinstance(value, MethodType) else "{read}() is {value}"
            self.guards.add(about, check, read=read, value=value)
        elif isinstance(value, (*_PLAIN, int, float, complex)):
            self.guards.add(about, "{read}() == {value}", read=read, value=value)
        else:
            self.guards.add(about, "{look}({read}()) == {seen}", read=read, look=fingerprint, seen=fingerprint(value))

    # ---------------------------------------------------------------------------------------------- tracing

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Let the module be seen by this observation, with stand-ins for its tensors."""
        module = self.module
        modules = [one for one in module.modules() if not _is_metric(one)]
        metrics = list(_metrics_of(module))
        inside = {id(part) for metric in metrics for part in metric.modules()}
        modules = [one for one in modules if id(one) not in inside]
        before = {id(one): dict(vars(one)) for one in modules}
        random_states = _random_states()
        places = list(self._places(modules))
        restored: list[tuple[dict[str, Any], str, Any]] = [(own, name, own[name]) for own, name in places]
        classes = [(one, type(one)) for one in (*modules, *metrics)]
        scope = vars(module)
        kept: dict[str, Any] = {name: scope[name] for name in ("_trainer", "log") if name in scope}
        try:
            for own, name in places:
                own[name] = self._stand_in(own[name])
            fakes_of = {id(own): {name: own[name] for o, name in places if o is own} for own, _ in places}
            scope["_trainer"] = ObservedTrainer(self)
            scope["log"] = self._log
            for one in modules:
                one.__class__ = self._watched(type(one))
            for metric in metrics:
                metric.__class__ = self._recording(type(metric))
            yield
            for one, kind in classes:
                one.__class__ = kind
            self._look_for_changes(modules, before, fakes_of)
        finally:
            for one, kind in classes:
                if type(one) is not kind:
                    one.__class__ = kind
            for own, name, value in restored:
                own[name] = value
            for one in modules:
                attributes = vars(one)
                for name in attributes.keys() - before[id(one)].keys():
                    del attributes[name]
                for name, value in before[id(one)].items():
                    if attributes.get(name) is not value:
                        attributes[name] = value
            for container, copy in self._containers:
                _restore(container, copy)
            scope.update(kept)
            if "log" not in kept:
                scope.pop("log", None)
        if _random_states() != random_states:
            together = " or exchanges tensors with other workers" if self.trainer.world_size > 1 else ""  # draws names
            raise CompileStepError(
                f"training_step draws random numbers from Python's random or from NumPy{together}, which a graph "
                "cannot do",
                "Draw them with torch (torch.rand, torch.distributions), or in the dataset.",
            )

    def _places(self, modules: list[nn.Module]) -> Iterator[tuple[dict[str, Any], str]]:
        """Find where the tensors of the modules are."""
        for one in modules:
            holders: list[dict[str, Any]] = [one._parameters, one._buffers]
            for own in holders:
                for name, tensor in own.items():
                    if tensor is not None:
                        where = ".".join(filter(None, ("self", self._names.get(id(one), "?"), name)))
                        check = "{own}.get({name}) is {tensor} and {tensor}.requires_grad is {trained}"
                        trained = tensor.requires_grad
                        self.guards.add(where, check, own=own, name=name, tensor=tensor, trained=trained)
                        self.sources[where] = (id(own), name)
                        yield own, name
            own = vars(one)
            for name, value in own.items():
                if type(value) in (list, tuple) and any(isinstance(part, nn.Parameter) for part in value):
                    yield own, name  # as recurrent layers have
                elif isinstance(value, Tensor):
                    self.cells.append((own, name))
                    check = "{meta}({own}.get({name})) == {seen}"
                    self.guards.add(name, check, meta=_meta, own=own, name=name, seen=_meta(value))
                    yield own, name

    def _stand_in(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.fakes.of(value)
        if type(value) in (list, tuple):
            return type(value)(self.fakes.of(part) if isinstance(part, Tensor) else part for part in value)
        return value

    def _watched(self, kind: type) -> type:
        observation = self
        look_up: Any = kind.__getattribute__

        def __getattribute__(one: Any, name: str) -> Any:
            value = look_up(one, name)
            if name in _OF_MODULES or name.startswith("__"):
                return value
            own = object.__getattribute__(one, "__dict__")
            return observation.read(one, own, name, value) if name in own else value

        return _derived(kind, {"__getattribute__": __getattribute__})

    def _recording(self, kind: type) -> type:
        observation = self
        look_up: Any = kind.__getattribute__

        def __getattribute__(one: Any, name: str) -> Any:
            if name in ("update", "forward", "compute", "reset"):
                return lambda *args, **kwargs: observation._metric(one, name, args, kwargs)
            return look_up(one, name)

        def __call__(one: Any, *args: Any, **kwargs: Any) -> Any:
            return observation._metric(one, "__call__", args, kwargs)

        return _derived(kind, {"__getattribute__": __getattribute__, "__call__": __call__})

    def _metric(self, metric: Any, method: str, args: Any, kwargs: Any) -> Any:
        number = len(self.calls)
        self.calls.append(("metric", metric, method, args, kwargs))
        if method in ("update", "reset"):
            return None
        if isinstance(metric, MetricCollection):
            return {str(key): Deferred(number, str(key)) for key in metric.keys(keep_base=False)}  # noqa: SIM118
        return Deferred(number)

    def _log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("enable_graph"):
            raise CompileStepError(
                f"self.log({name!r}, ..., enable_graph=True) keeps a graph that does not exist",
                "Log it without enable_graph.",
            )
        self.calls.append(("log", name, value, args, kwargs))

    def _line_of(self, name: str) -> str:
        """Return the last line of the step that has a name after a dot, which is where it is likely to be changed."""
        function = type(self.module).training_step
        try:
            lines, first = inspect.getsourcelines(function)
        except (OSError, TypeError):
            return ""
        found = [number for number, line in enumerate(lines, first) if re.search(rf"\.{re.escape(name)}\b", line)]
        return f" ({inspect.getsourcefile(function)}, line {found[-1]})" if found else ""

    def _look_for_changes(
        self, modules: list[nn.Module], before: dict[int, dict[str, Any]], fakes_of: dict[int, dict[str, Any]]
    ) -> None:
        """Find what the step has changed: tensors become outputs of the graph, anything else is refused."""
        for one in modules:
            own, name_of = vars(one), self._names.get(id(one), "")
            for holder in (one._buffers, own):
                seen = fakes_of.get(id(holder), {})
                for name, value in list(holder.items()):
                    was = seen.get(name, before[id(one)].get(name) if holder is own else None)
                    if value is was or holder is own and (name in _OF_MODULES or _is_of_torch(one, name)):
                        continue
                    about = ".".join(filter(None, ("self", name_of, name)))
                    if isinstance(value, Tensor) and isinstance(was, Tensor) and _meta(value) == _meta(was):
                        self.written.append((holder, name, value.detach()))
                        if holder is not own:
                            self.cells.append((holder, name))
                        continue
                    raise CompileStepError(
                        f"training_step assigns {about}{self._line_of(name)}, which only the first step would do",
                        "Return it from training_step and keep it in on_train_batch_end, or keep a number as a "
                        "tensor: self.register_buffer in __init__, then change it in place.",
                    )
        for about, expression in self.guards.parts:
            if about in self.sources and not eval(expression, dict(self.guards.names)):  # noqa: S307
                owner, name = self.sources[about]
                if (owner, name) in self._read:
                    raise CompileStepError(
                        f"training_step changes {about} in place{self._line_of(name)}, which only the first step "
                        "would do",
                        "Return the values from training_step and collect them in on_train_batch_end.",
                    )


class ObservedTrainer:
    """What a traced step sees of the trainer: plain values, which are compared in later steps."""

    def __init__(self, observation: Observation) -> None:
        self._observation = observation

    def __getattr__(self, name: str) -> Any:
        observation = self._observation
        trainer = observation.trainer
        if name in _LIVE:
            return observation.live(f"trainer.{name}", lambda: getattr(trainer, name))
        value = getattr(trainer, name)
        if isinstance(value, (*_PLAIN, int, float)):
            observation.watch(f"trainer.{name}", lambda: getattr(trainer, name), value)
            return value
        raise CompileStepError(
            f"training_step uses trainer.{name}, which a graph cannot",
            "Move that to a hook, such as on_train_batch_end; log learning rates with LearningRateMonitor.",
        )


def fingerprint(value: Any, depth: int = _DEPTH) -> Any:
    """Return what can be compared of a value later: of plain ones and what holds them all, of others which they are."""
    left = [_LEAVES]

    def look(part: Any, depth: int) -> Any:
        left[0] -= 1
        if isinstance(part, (*_PLAIN, int, float, complex)):
            return (type(part), part)
        if depth and left[0] > 0:
            if isinstance(part, (list, tuple, set, frozenset)):
                return (type(part), *(look(one, depth - 1) for one in part))
            if isinstance(part, dict):
                return (type(part), *((look(key, 0), look(one, depth - 1)) for key, one in part.items()))
            if not isinstance(part, (Tensor, nn.Module, *_CODE)) and hasattr(part, "__dict__"):
                return (id(part), *((key, look(one, depth - 1)) for key, one in vars(part).items()))
        return id(part)

    return look(value, depth)


def _meta(value: Any) -> Any:
    return (value.shape, value.dtype, value.device, value.requires_grad) if isinstance(value, Tensor) else None


def _restore(container: Any, copy: Any) -> None:
    """Undo what a trace has done to a list, a dict or a set: a stand-in that stays there would be of no use."""
    if isinstance(container, list):
        container[:] = copy
    else:
        container.clear()
        container.update(copy)


def _is_of_torch(owner: nn.Module, name: str) -> bool:
    """Return whether an attribute is what a layer of torch keeps for itself, as recurrent ones do."""
    return name.startswith("_") and type(owner).__module__.startswith("torch.nn.")


def _random_states() -> tuple[Any, ...]:
    of_numpy: Any = numpy.random.get_state()
    return random.getstate(), of_numpy[1].tobytes(), of_numpy[2]


def _is_metric(one: nn.Module) -> bool:
    return isinstance(one, (Metric, MetricCollection))


def _metrics_of(module: nn.Module) -> Iterator[nn.Module]:
    """Return the metrics of a module, without those inside of others."""
    for child in module.children():
        if _is_metric(child):
            yield child
        else:
            yield from _metrics_of(child)


def _derived(kind: type, names: dict[str, Any]) -> type:
    own = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind)(kind.__name__, (kind,), {**own, **names})
