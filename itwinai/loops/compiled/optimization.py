"""Optimization of one batch by compiled graphs, in place of the lean loop's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from typing_extensions import override

from itwinai.compat import lightning_logging, lightning_loops, torch_compile
from itwinai.errors import CompileStepError
from itwinai.loops.compiled import limits
from itwinai.loops.compiled.graph import Outputs, Part, Step, StepGraph
from itwinai.loops.hook_plan import ProfilerSpans
from itwinai.loops.optimization import LeanOptimization
from itwinai.profiling.step_timer import Phase

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

MOST_GRAPHS = 8
"""Graphs for batches of one shape, and shapes, above which compiling costs more than it saves."""


class CompiledGraphs:
    """The graphs of a fit, over all of its epochs.

    Args:
        trainer: the trainer.
        required: raise an error for a step that cannot be compiled; otherwise it runs as it is.

    Attributes:
        given_up: why nothing is compiled any more.
        batch_idx: index of the batch in work.
    """

    batch_idx = 0

    def __init__(self, trainer: Trainer, required: bool) -> None:
        self.trainer = trainer
        self.required = required
        self.given_up: str | None = None
        self.changing: set[tuple[int, str]] = set()
        self.graphs: dict[Any, list[StepGraph]] = {}

    def optimization(self, spans: ProfilerSpans) -> LeanOptimization | None:
        """Return what optimizes the batches of an epoch; None if the module does it."""
        if self.given_up is None and not lightning_loops.skips_backward(self.trainer):
            try:
                limits.check(self.trainer)
                return CompiledOptimization(self.trainer, spans, self)
            except CompileStepError as error:
                self.give_up(error)
        return LeanOptimization(self.trainer, spans) if self.trainer.lightning_module.automatic_optimization else None

    def give_up(self, error: CompileStepError) -> None:
        """Raise the error, or go on without graphs and say why."""
        if self.required:
            raise error
        self.given_up = error.reason
        self.graphs.clear()
        rank_zero_info(f"itwinai: compile_step='auto' does not compile the training step: {error.reason}")

    def find(self, part: Part, step: Step, batch: Any, key: Any) -> StepGraph:
        """Return a graph that does what the Python code would do now; make it if there is none.

        Args:
            part: what of the step it does.
            step: the step.
            batch: what it is for.
            key: what the graphs of such batches have in common.

        Raises:
            CompileStepError: it cannot be made, or there are too many.
        """
        found = self.graphs.get(key, [])
        for graph in found:
            if graph.holds():
                if graph is not found[0]:  # so that it is the first that is tried next time
                    found.remove(graph)
                    found.insert(0, graph)
                return graph
        broken = found[0].guards.failed() if found else []
        if len(found) >= MOST_GRAPHS or len(self.graphs) > 4 * MOST_GRAPHS:
            what = f"{broken[0]} changes too often" if broken else "batches have too many shapes"
            raise CompileStepError(
                f"the step was compiled {len(found) or len(self.graphs)} times, as {what}",
                "Keep it as a tensor that is changed in place (self.register_buffer), or pad the batches.",
            )
        if found:
            self.changing.update(found[0].sources[about] for about in broken if about in found[0].sources)
        graph = StepGraph(part, step, *torch_compile.flatten(batch))
        reason = (
            f", as {broken[0]} has changed" if broken else " for batches of another shape" if self._others(part) else ""
        )
        rank_zero_info(f"itwinai: compiled the training step in {graph.seconds:.1f} s{reason}")
        self.graphs[key] = [graph, *found]
        return graph

    def _others(self, part: Part) -> bool:
        return any(graph.part == part for graphs in self.graphs.values() for graph in graphs)


class CompiledOptimization(LeanOptimization):
    """Optimizes batches by graphs; hooks are called where they are without graphs, on the same state.

    Args:
        trainer: the trainer, with everything set up.
        spans: the profile.
        graphs: the graphs of this fit.
    """

    def __init__(self, trainer: Trainer, spans: ProfilerSpans, graphs: CompiledGraphs) -> None:
        super().__init__(trainer, spans)
        self.graphs = graphs
        between = (self.before_zero_grad, self.zero_grad, self.before_backward, self.after_backward)
        self.is_split = any(hook is not None for hook in (*between, self.before_optimizer_step))
        self.clears_itself = self.zero_grad is None and "zero_grad" not in vars(self.raw_optimizer)
        step = self.module.training_step
        takes_batch_idx = self.takes_batch_idx
        self.definition = Step(
            module=self.module,
            trainer=trainer,
            optimizer=self.raw_optimizer,
            arguments=lambda batch, index: (batch, index) if takes_batch_idx else (batch,),
            batch_idx=lambda: graphs.batch_idx,  # of whatever optimizes then: an epoch has its own
            context=self._precision_context,
            changing=graphs.changing,
        )
        self._key = (id(getattr(step, "__func__", step)), id(self.raw_optimizer), self.is_split, trainer.precision)

    def _precision_context(self) -> Any:
        return self.trainer.precision_plugin.train_step_context()

    @override
    def run(self, batch: Any, batch_idx: int, accumulating: bool) -> dict[str, Any]:
        graphs = self.graphs
        if graphs.given_up is not None:
            return super().run(batch, batch_idx, accumulating)
        self.batch_idx = graphs.batch_idx = batch_idx
        self.window = window = self.trainer.accumulate_grad_batches
        first = batch_idx % window == 0
        updates = not (accumulating or self.is_split)
        try:
            leaves, shapes = describe(batch)
            had = () if first else tuple(p.grad is not None for p in self.module.parameters())
            key = (*self._key, shapes, first, updates, window, had)
            found = graphs.graphs.get(key)
            if found is not None and found[0].holds():
                graph = found[0]
            else:
                graph = graphs.find(Part(True, first, updates, window), self.definition, batch, key)
        except CompileStepError as error:
            graphs.give_up(error)
            return super().run(batch, batch_idx, accumulating)
        if graph.is_empty:
            return super().run(batch, batch_idx, accumulating)
        with torch.no_grad():
            return self._run(graph, leaves, accumulating)

    def _run(self, graph: StepGraph, leaves: list[Any], accumulating: bool) -> dict[str, Any]:
        scope, counters, clock = self.scope, self.progress.step, self.clock
        outer = scope[lightning_logging.HOOK_NAME]
        if not accumulating:
            counters.increment_ready()
            scope[lightning_logging.HOOK_NAME] = "optimizer_step"
        outputs = graph(leaves)
        returned: dict[int, Any] = {}
        if graph.calls:
            inner, scope[lightning_logging.HOOK_NAME] = scope[lightning_logging.HOOK_NAME], "training_step"
            with torch.enable_grad():
                for call in graph.calls:
                    call(outputs, returned)
            scope[lightning_logging.HOOK_NAME] = inner
        if clock is not None:
            clock.mark(Phase.FORWARD)
        if self.is_split:
            with torch.enable_grad():
                self._run_hooks(graph, outputs, accumulating)
        else:
            if graph.part.first:
                zeroed = self.progress.zero_grad
                zeroed.increment_ready()
                zeroed.increment_started()
                if not self.clears_itself:
                    self.optimizer.zero_grad()
                zeroed.increment_completed()
            graph.publish(outputs)
        if clock is not None:
            clock.mark(Phase.OPTIMIZER)
        scope[lightning_logging.HOOK_NAME] = outer
        if not accumulating:
            torch_compile.note_step(self.raw_optimizer)
            counters.increment_completed()
        result: dict[str, Any] = graph.result(outputs, returned)
        return result

    def _run_hooks(self, graph: StepGraph, outputs: Outputs, accumulating: bool) -> None:
        """Call the hooks between forward and the update, each on the state that it is meant to see."""
        scope = self.scope
        if graph.part.first:
            self.clear_gradients()
        inner, scope[lightning_logging.HOOK_NAME] = scope[lightning_logging.HOOK_NAME], "backward"
        if self.before_backward is not None:
            self.before_backward(graph.loss(outputs, {}))
        graph.publish(outputs)
        if self.after_backward is not None:
            self.after_backward()
        scope[lightning_logging.HOOK_NAME] = inner
        if accumulating:
            return
        if self.before_optimizer_step is not None:
            self.before_optimizer_step(self.raw_optimizer)
        self._update()

    def _update(self) -> None:
        """Clip and update by a graph of its own, from the gradients that hooks may have changed."""
        part = Part(False, False, True, self.window)
        gradients = tuple(p.grad is not None for group in self.raw_optimizer.param_groups for p in group["params"])
        try:
            update = self.graphs.find(part, self.definition, (), (*self._key, part, gradients))
        except CompileStepError as error:
            self.graphs.give_up(error)
            if self.trainer.gradient_clip_val is not None:
                lightning_loops.clip_gradients(self.trainer, self.raw_optimizer)
            self.raw_optimizer.step()
            return
        with torch.no_grad():
            update([])


def describe(batch: Any) -> tuple[list[Any], Any]:
    """Return the leaves of a batch, and what a graph takes for granted about them and how they are put together.

    Raises:
        CompileStepError: something in it can be no input of a graph.
    """
    kind = type(batch)
    if (kind is list or kind is tuple) and all(type(leaf) is Tensor for leaf in batch):  # the most usual
        return batch, (kind, *((leaf.shape, leaf.dtype, leaf.stride(), leaf.device) for leaf in batch))
    leaves, structure = torch_compile.flatten(batch)
    shapes: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            shapes.append((leaf.shape, leaf.dtype, leaf.stride(), leaf.device))
        elif isinstance(leaf, (bool, int, float, str, bytes, type(None))):
            shapes.append(leaf)
        else:
            raise CompileStepError(
                f"the batch holds a {type(leaf).__name__}, which is no tensor",
                "Let the dataset return tensors in lists, tuples and dicts.",
            )
    return leaves, (structure, *shapes)
