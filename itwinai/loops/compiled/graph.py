"""Traces, compiles and runs one graph: forward, backward, clipping and update, or a part of these."""

from __future__ import annotations

import linecache
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from itwinai.compat import lightning_logging, lightning_loops, torch_compile
from itwinai.errors import CompileStepError, UnusedParametersError
from itwinai.interfaces import AveragesFlat
from itwinai.loops.compiled.flat_gradients import FlatGradients
from itwinai.loops.compiled.live_number import LiveNumber
from itwinai.loops.compiled.logged_values import LoggedValue
from itwinai.loops.compiled.observation import Deferred, Guards, Observation
from itwinai.loops.compiled.updates import update_of
from itwinai.tracebacks import chain, frames_of, is_users

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

Outputs = list[Tensor]
Template = Callable[[Outputs, dict[int, Any]], Any]
"""Makes a value of a step from the outputs of the graph, and from what metrics have returned."""


MOST_OPERATIONS = 10_000


@dataclass(frozen=True)
class Part:
    """What of a step a graph does.

    Attributes:
        forward: run `training_step` and backward.
        first: clear the gradients before; otherwise they are added to those that are there.
        update: clip the gradients and update the parameters.
        window: number of batches whose gradients are accumulated.
        averaged: leave the gradients where the workers average them.
    """

    forward: bool
    first: bool
    update: bool
    window: int
    averaged: bool = False


@dataclass(frozen=True)
class Step:
    """What a graph is made of, in this run.

    Attributes:
        module: the module.
        trainer: its trainer.
        optimizer: torch's optimizer.
        arguments: returns the arguments of `training_step`, given the batch and the index of the batch.
        batch_idx: returns the index of the batch in work.
        context: in which `training_step` runs, for its precision.
        changing: attributes that have changed between two graphs.
        strategy: averages gradients; None for a single worker.
        flat: returns where the gradients of parameters are averaged.
    """

    module: LightningModule
    trainer: Trainer
    optimizer: Optimizer
    arguments: Callable[[Any, Any], tuple[Any, ...]]
    batch_idx: Callable[[], int]
    context: Callable[[], AbstractContextManager[Any]]
    changing: set[tuple[int, str]]
    strategy: AveragesFlat | None
    flat: Callable[[], FlatGradients]


class StepGraph:
    """One compiled graph, for batches of one shape.

    Args:
        part: what of the step it does.
        step: the step.
        leaves: what the batch is made of.
        structure: how it is made of it.

    Attributes:
        holds: returns whether all that the trace has taken for granted is still so.
        is_empty: whether `training_step` returned None, so that there is nothing to run.
        seconds: how long it took to trace and to compile it.

    Raises:
        CompileStepError: it cannot be done.
    """

    def __init__(self, part: Part, step: Step, leaves: Sequence[Any], structure: Any) -> None:
        began = time.perf_counter()
        self.part, self.step = part, step
        self.outputs: list[Tensor] = []
        self.calls: list[Callable[[Outputs, dict[int, Any]], None]] = []
        self.result: Template = _constant({})
        self.loss: Template = _constant(None)
        self.logged: list[LoggedValue] = []
        self.is_empty = False
        self.graded: list[Tensor] = []  # parameters whose gradients are outputs, and where these begin
        self.gradients_at = 0
        self.flat = step.flat() if part.averaged else None
        self.changed: list[Tensor] = []
        fakes = torch_compile.FakeTensors()
        observation = Observation(step.module, step.trainer, fakes, step.changing)
        self.guards: Guards = observation.guards
        self.sources = observation.sources
        self._written: list[tuple[dict[str, Any], str, int]] = []
        for parameter in self._parameters():
            fakes.of(parameter)
        stand_ins = [fakes.of(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        gradients = {
            id(fakes.of(p)): (p, fakes.of(p.grad))
            for p in self._parameters()
            if p.grad is not None and not (part.forward and part.first)
        }

        def traced() -> list[Tensor]:
            batch = torch_compile.unflatten(stand_ins, structure)
            if part.forward:
                self._forward(observation, fakes, batch, gradients, torch_compile.unflatten(list(leaves), structure))
            if part.update and not self.is_empty:
                self._update(observation, fakes, gradients)
            with torch.no_grad():
                self.gradients_at = len(self.outputs)
                alone = self._average(fakes, gradients) if self.flat is not None else list(gradients.values())
                if part.forward:
                    self.graded = [p for p, _ in alone]
                    self.outputs += [gradient.detach() for _, gradient in alone]
            return self.outputs

        try:
            graph, inputs = self._trace(traced, fakes)
        except (CompileStepError, UnusedParametersError):
            raise
        except Exception as error:
            raise _untraceable(error, step.module) from error
        self.holds = self.guards.function()
        if len(graph.graph.nodes) > MOST_OPERATIONS:
            raise CompileStepError(
                f"the graph has {len(graph.graph.nodes)} operations, which would take minutes to compile: loops and "
                "recurrent layers are unrolled",
                "Shorten the sequences.",
            )
        if not self.is_empty:
            try:
                self._compiled = torch_compile.compile_graph(graph, inputs, fakes)
            except Exception as error:
                raise _uncompilable(error, step.module) from error
        self.slots = [slot for slot in observation.inputs.slots if any(slot.tensor is one for one in inputs)]
        place = {id(tensor): index for index, tensor in enumerate(inputs)}
        self._inputs = list(inputs)
        self._leaves = [(place[id(leaf)], number) for number, leaf in enumerate(leaves) if id(leaf) in place]
        self._cells = [(place[id(own[name])], own, name) for own, name in observation.cells if id(own[name]) in place]
        self._sums = [(one, place.get(id(one.total)), place.get(id(one.weight))) for one in self.logged]
        self._grads = [(place[id(p.grad)], p) for p, _ in gradients.values() if id(p.grad) in place]
        self.cleared = self._cleared() if part.first else []
        self.changed = self._changed(graph, inputs)
        for position, _ in self._leaves:
            self._inputs[position] = torch.empty(0)  # so that no batch is kept
        for position, _ in self._grads:
            self._inputs[position] = torch.empty(0)
        self.seconds = time.perf_counter() - began

    def _parameters(self) -> list[Tensor]:
        """Return all parameters that can have gradients: the module's, and the optimizer's."""
        found = {id(p): p for p in self.step.module.parameters() if p.requires_grad}
        found |= {id(p): p for group in self.step.optimizer.param_groups for p in group["params"] if p.requires_grad}
        return list(found.values())

    def _cleared(self) -> list[Tensor]:
        """Return the parameters of the optimizer, frozen ones above all, that get no gradient in this step."""
        published = {id(p) for p in (*self.graded, *(self.flat.parameters if self.flat is not None else ()))}
        return [p for group in self.step.optimizer.param_groups for p in group["params"] if id(p) not in published]

    def _trace(self, traced: Callable[[], list[Tensor]], fakes: torch_compile.FakeTensors) -> tuple[Any, list[Tensor]]:
        with torch.enable_grad():
            return torch_compile.trace(traced, fakes)

    @staticmethod
    def _changed(graph: Any, inputs: list[Tensor]) -> list[Tensor]:
        """Return the inputs that the graph changes, of which autograd has to know."""
        names = {
            node.name: tensor for node, tensor in zip(graph.graph.find_nodes(op="placeholder"), inputs, strict=True)
        }
        copies = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default)
        return [names[node.args[0].name] for node in copies if node.args[0].name in names]

    # -------------------------------------------------------------------------------------------------- tracing

    def _forward(
        self,
        observation: Observation,
        fakes: torch_compile.FakeTensors,
        batch: Any,
        gradients: dict[int, tuple[Tensor, Tensor]],
        real_batch: Any,
    ) -> None:
        """Run `training_step` and backward on stand-ins; add the gradients to those that are there."""
        step, part = self.step, self.part
        index = observation.live("batch_idx", step.batch_idx)
        # The recurrent layers of oneDNN can be compiled for inference only.
        recurrent = any(isinstance(one, torch.nn.RNNBase) for one in step.module.modules())
        library = torch.backends.mkldnn.flags(enabled=False) if recurrent else nullcontext()
        with observation.watching(), torch_compile.without_other_compilers(), step.context(), library:
            output = step.module.training_step(*step.arguments(batch, index))
        for call in observation.calls:
            self.calls.append(self._call(call, len(self.calls), fakes, real_batch))
        for own, name, value in observation.written:
            self._written.append((own, name, self._output(value)))
        if output is None:
            self.is_empty = True
            return
        result = lightning_loops.closure_result(output, part.window)
        self.result = self._template(result.asdict())
        loss = result.closure_loss
        assert loss is not None
        if step.strategy is not None:
            weight = fakes.of(observation.inputs.add(step.strategy.batch_weight))
            loss = loss * weight.to(loss.dtype)
        self.loss = self._template(loss)
        trained = {id(fakes.of(p)): p for p in self._parameters()}
        fake_parameters = [fakes.of(p) for p in trained.values()]
        found: tuple[Tensor | None, ...] = torch.autograd.grad(loss, fake_parameters, allow_unused=True)
        with torch.no_grad():
            for fake, gradient in zip(fake_parameters, found, strict=True):
                if gradient is None:
                    continue
                if gradient.is_sparse:
                    raise CompileStepError(
                        "a layer has sparse gradients, which no graph can hold", "Set sparse=False in the layer."
                    )
                there = gradients.get(id(fake))
                total = gradient if there is None else there[1] + gradient
                gradients[id(fake)] = (trained[id(fake)], total)

    def _average(
        self, fakes: torch_compile.FakeTensors, gradients: dict[int, tuple[Tensor, Tensor]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Write the gradients where they are averaged; return those of parameters that no other worker knows."""
        flat, strategy = self.flat, self.step.strategy
        assert flat is not None and strategy is not None
        found = {id(parameter): gradient for parameter, gradient in gradients.values()}
        if not self.is_empty:
            if missing := {id(p) for p in flat.missing(found)}:
                names = [name for name, p in self.step.module.named_parameters() if id(p) in missing]
                raise strategy.unused_error(names)
            flat.trace(found, fakes)
        shared = {id(parameter) for parameter in flat.parameters}
        return [one for one in gradients.values() if id(one[0]) not in shared]

    @torch.no_grad()
    def _update(
        self,
        observation: Observation,
        fakes: torch_compile.FakeTensors,
        gradients: dict[int, tuple[Tensor, Tensor]],
    ) -> None:
        """Clip the gradients, and update the parameters of the optimizer that have some."""
        optimizer, guards = self.step.optimizer, self.guards
        guards.add("the state of the optimizer", "{o}.state is {s}", o=optimizer, s=optimizer.state)
        groups = optimizer.param_groups
        guards.add(
            "the parameter groups", "{o}.param_groups is {g} and len({g}) == {n}", o=optimizer, g=groups, n=len(groups)
        )
        owned = {id(fakes.of(p)) for group in groups for p in group["params"]}
        clipped = {key: found for key, found in gradients.items() if key in owned}
        self._clip(observation, fakes, clipped)
        gradients.update(clipped)
        update = update_of(optimizer)
        assert update is not None
        for number, group in enumerate(groups):
            guards.add("the parameters of a group", "len({g}['params']) == {n}", g=group, n=len(group["params"]))
            for name, flag in update.flags.items():
                about = f"{name} of the optimizer's group {number}"
                guards.add(about, "{flag}({group}) == {value}", flag=flag, group=group, value=flag(group))
            given = {
                name: fakes.of(observation.inputs.add(lambda read=read, group=group: float(read(group))))  # type: ignore[misc]
                for name, read in update.numbers.items()
            }
            for p in group["params"]:
                found = gradients.get(id(fakes.of(p)))
                if found is None:
                    continue
                if not optimizer.state.get(p):
                    with torch_compile.outside_of_trace():
                        begun = update.begin(group, p.detach())
                    if begun:
                        optimizer.state[p] = begun
                state = optimizer.state.get(p) or {}
                own = {name: fakes.of(value) for name, value in state.items() if isinstance(value, Tensor)}
                update.apply(fakes.of(p), found[1], own, given, group)

    def _clip(
        self,
        observation: Observation,
        fakes: torch_compile.FakeTensors,
        gradients: dict[int, tuple[Tensor, Tensor]],
    ) -> None:
        trainer: Any = self.step.trainer

        def by() -> tuple[bool, bool]:
            value = trainer.gradient_clip_val
            return bool(value is not None and value > 0), trainer.gradient_clip_algorithm == "value"

        self.guards.add("trainer.gradient_clip_val", "{by}() == {now}", by=by, now=by())
        if not by()[0] or not gradients:
            return
        limit = fakes.of(observation.inputs.add(lambda: float(trainer.gradient_clip_val)))
        found = [gradient for _, gradient in gradients.values()]
        if by()[1]:
            found = [torch.maximum(torch.minimum(one, limit.to(one.dtype)), -limit.to(one.dtype)) for one in found]
        else:
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(one) for one in found]))
            scale = (limit.to(norm.dtype) / (norm + 1e-6)).clamp(max=1.0)
            found = [one * scale.to(one.dtype) for one in found]
        if not self.part.forward:  # as torch does, in the tensors that hooks have seen
            for (_, old), new in zip(gradients.values(), found, strict=True):
                old.copy_(new)
            return
        for key, new in zip(list(gradients), found, strict=True):
            gradients[key] = (gradients[key][0], new)

    def _output(self, tensor: Tensor) -> int:
        for index, known in enumerate(self.outputs):
            if known is tensor:
                return index
        self.outputs.append(tensor)
        return len(self.outputs) - 1

    def _template(self, value: Any) -> Template:
        """Return how to make a value that the step has made from stand-ins."""
        if isinstance(value, Tensor):
            index = self._output(value)
            return lambda outputs, returned: outputs[index]
        if isinstance(value, LiveNumber):
            read = value.read
            return lambda outputs, returned: read()
        if isinstance(value, Deferred):
            call, key = value.call, value.key
            return lambda outputs, returned: returned[call] if key is None else returned[call][key]
        if type(value) in (list, tuple):
            kind, parts = type(value), [self._template(part) for part in value]
            return lambda outputs, returned: kind(part(outputs, returned) for part in parts)
        if type(value) is dict:
            named = {name: self._template(part) for name, part in value.items()}
            return lambda outputs, returned: {name: part(outputs, returned) for name, part in named.items()}
        return _constant(value)

    def _call(
        self, call: tuple[Any, ...], number: int, fakes: torch_compile.FakeTensors, batch: Any
    ) -> Callable[[Outputs, dict[int, Any]], None]:
        """Return how to repeat a call of `self.log` or of a metric."""
        kind, target, what, args, kwargs = call
        again = any(one.name == target for one in self.logged)  # sums of the call before would be missing
        if kind == "log" and not again and LoggedValue.takes(what, args, kwargs):
            options = dict(kwargs)
            given = options.pop("batch_size", None)
            samples = lightning_logging.common_size(batch) if given is None else given
            if samples is not None:
                logged = LoggedValue(self.step.module, target, given, options)
                logged.first = len(self.outputs)
                with torch.no_grad():
                    self.outputs += logged.trace(what, fakes.of(logged.total), fakes.of(logged.weight), samples)
                self.logged.append(logged)
                return lambda outputs, returned: logged.log(outputs)
        scope = vars(self.step.module)
        positional, named = self._template(tuple(args)), self._template(dict(kwargs))
        if kind == "metric":

            def update(outputs: Outputs, returned: dict[int, Any]) -> None:
                given = positional(outputs, returned), named(outputs, returned)
                returned[number] = getattr(target, what)(*given[0], **given[1])

            return update
        value, module = self._template(what), self.step.module
        if not args and not any(isinstance(one, (Tensor, LiveNumber)) for one in kwargs.values()):

            def log_plainly(outputs: Outputs, returned: dict[int, Any]) -> None:
                (scope.get("log") or module.log)(target, value(outputs, returned), **kwargs)

            return log_plainly

        def log(outputs: Outputs, returned: dict[int, Any]) -> None:
            given = positional(outputs, returned), named(outputs, returned)
            (scope.get("log") or module.log)(target, value(outputs, returned), *given[0], **given[1])

        return log

    # -------------------------------------------------------------------------------------------------- running

    def __call__(self, leaves: Sequence[Any]) -> Outputs:
        """Run the graph on a batch; return its outputs."""
        for slot in self.slots:
            slot.refresh()
        inputs = self._inputs.copy()
        for position, number in self._leaves:
            inputs[position] = leaves[number]
        for position, own, name in self._cells:
            inputs[position] = own[name]
        for position, parameter in self._grads:
            inputs[position] = parameter.grad  # type: ignore[assignment]
        for logged, total, weight in self._sums:
            sums = logged.prepare()
            if total is not None and weight is not None:
                inputs[total], inputs[weight] = sums
        outputs = self._compiled(inputs)
        torch.autograd.graph.increment_version(self.changed)
        for own, name, index in self._written:
            own[name] = outputs[index]
        return outputs

    def publish(self, outputs: Outputs) -> None:
        """Set the gradients of the parameters, where callbacks and the next batches look for them."""
        for parameter in self.cleared:
            parameter.grad = None  # of the step before
        if self.flat is not None:
            assert self.step.strategy is not None
            self.flat.average(self.step.strategy)
            self.flat.publish(cleared=self.part.first)
        for number, parameter in enumerate(self.graded, self.gradients_at):
            parameter.grad = outputs[number]


def _constant(value: Any) -> Template:
    return lambda outputs, returned: value


def _untraceable(error: Exception, module: LightningModule) -> CompileStepError:
    """Return the error for a step that cannot be traced: which line it is, and what to do."""
    name = f"{type(module).__name__}.training_step"
    frames = [frame for frame in frames_of(error.__traceback__) if is_users(frame.file)]
    line = ""
    if frames:
        last = frames[-1]
        line = f" at {last.file}, line {last.line} ({linecache.getline(last.file, last.line).strip()})"
    text = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {text[0] if text else ''}"
    if torch_compile.needs_values(error):
        return CompileStepError(
            f"{name} needs the values of a tensor{line}: a graph has them only when it runs",
            "Replace .item(), float(), `if tensor:` by torch.where or masks; log tensors as they are.",
        )
    return CompileStepError(
        f"{name} cannot be traced{line}: {said}",
        "If the step runs without compile_step, write that line in operations of torch.",
    )


def _uncompilable(error: Exception, module: LightningModule) -> CompileStepError:
    """Return the error for a graph that torch's compiler does not take."""
    if any("CxxCompiler" in type(one).__name__ for one in chain(error)):
        return CompileStepError(
            "torch's compiler needs a C++ compiler, and finds none", "Install g++, or set CXX to the path of one."
        )
    text = str(error).strip().splitlines()
    return CompileStepError(
        f"torch's compiler fails on {type(module).__name__}.training_step: {type(error).__name__}: "
        f"{text[0] if text else ''}",
        "Train without compile_step.",
    )
