"""Optimization of one batch by compiled graphs, in place of the lean loop's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from typing_extensions import override

from itwinai.collectives import gather
from itwinai.compat import lightning_logging, lightning_loops, torch_compile
from itwinai.errors import CompileStepError
from itwinai.interfaces import AveragesFlat
from itwinai.loops.compiled import limits
from itwinai.loops.compiled.flat_gradients import FlatGradients
from itwinai.loops.compiled.graph import Outputs, Part, Step, StepGraph
from itwinai.loops.hook_plan import InScope, ProfilerSpans
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
        strategy: averages gradients; None for a single worker.
        given_up: why nothing is compiled any more by this worker.
        is_agreed: whether the workers know that of each other, and exchange gradients as without graphs.
        batch_idx: index of the batch in work.
    """

    batch_idx = 0

    def __init__(self, trainer: Trainer, required: bool) -> None:
        self.trainer = trainer
        self.required = required
        strategy = trainer.strategy
        self.strategy = strategy if isinstance(strategy, AveragesFlat) and trainer.world_size > 1 else None
        self.given_up: str | None = None
        self.is_agreed = False
        self._flat: FlatGradients | None = None
        self._agreed_in: int | None = None
        self.changing: set[tuple[int, str]] = set()
        self.graphs: dict[Any, list[StepGraph]] = {}

    def optimization(self, spans: ProfilerSpans) -> LeanOptimization | None:
        """Return what optimizes the batches of an epoch; None if the module does it."""
        trainer = self.trainer
        if not trainer.lightning_module.automatic_optimization and not self.required:
            self.is_agreed = True  # a matter of the class
        if lightning_loops.skips_backward(trainer):
            return LeanOptimization(trainer, spans) if trainer.lightning_module.automatic_optimization else None
        if self.given_up is None:
            try:
                limits.check(trainer)
                if not self.required:
                    limits.check_size(trainer)
            except CompileStepError as error:
                self.give_up(error)
        if not self.is_agreed:
            return CompiledOptimization(trainer, spans, self)
        return LeanOptimization(trainer, spans) if trainer.lightning_module.automatic_optimization else None

    def give_up(self, error: CompileStepError) -> None:
        """Raise the error, or go on without graphs and say why."""
        if self.required:
            raise error
        self.given_up = error.reason
        self.graphs.clear()
        self.is_agreed = self.is_agreed or self.strategy is None
        rank_zero_info(f"itwinai: compile_step='auto' does not compile the training step: {error.reason}")

    def agree(self) -> None:
        """Let all workers go without graphs if one has to; they all call it in the first step of each epoch."""
        epoch = self.trainer.current_epoch
        if self.strategy is None or epoch == self._agreed_in:
            return
        self._agreed_in = epoch
        if self.required:  # an error has ended those that could not
            return
        reasons = gather(self.trainer, self.given_up)
        if any(reasons):
            rank, reason = next((rank, reason) for rank, reason in enumerate(reasons) if reason)
            self.is_agreed = True
            if self.given_up is None:
                self.give_up(CompileStepError(f"rank {rank}: {reason}", ""))

    def flat(self) -> FlatGradients:
        """Return where the gradients of the parameters that are trained now are averaged."""
        assert self.strategy is not None
        trained = [p for p in self.trainer.lightning_module.parameters() if p.requires_grad]
        if self._flat is None or not self._flat.are_of(trained):
            self._flat = FlatGradients(trained, self.strategy.find_unused_parameters)
        return self._flat

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
        self.averages = graphs.strategy
        self._alone = OptimizationAlone(trainer, spans, graphs, self._update) if self.averages is not None else None
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
            strategy=self.averages,
            flat=graphs.flat,
        )
        self._key = (id(getattr(step, "__func__", step)), id(self.raw_optimizer), self.is_split, trainer.precision)

    def _precision_context(self) -> Any:
        return self.trainer.precision_plugin.train_step_context()

    @override
    def run(self, batch: Any, batch_idx: int, accumulating: bool) -> dict[str, Any]:
        graphs = self.graphs
        if graphs.is_agreed:
            return super().run(batch, batch_idx, accumulating)
        self.batch_idx = graphs.batch_idx = batch_idx
        self.window = self.trainer.accumulate_grad_batches
        if self.averages is not None:
            self.averages.begin_flat_step(not accumulating)
        found = self._find(batch, accumulating) if graphs.given_up is None else None
        graphs.agree()
        if graphs.is_agreed or found is not None and found[0].is_empty:
            return super().run(batch, batch_idx, accumulating)
        if found is None:
            assert self._alone is not None
            self._alone.clock = self.clock
            return self._alone.run(batch, batch_idx, accumulating)
        with torch.no_grad():
            return self._run(*found, accumulating)

    def _find(self, batch: Any, accumulating: bool) -> tuple[StepGraph, list[Any]] | None:
        """Return the graph of a batch, and the leaves of it; None if it cannot be compiled."""
        graphs, window = self.graphs, self.window
        first = graphs.batch_idx % window == 0
        averaged = self.averages is not None and not accumulating
        updates = not (accumulating or averaged or self.is_split)
        try:
            leaves, shapes = describe(batch)
            had = () if first else tuple(p.grad is not None for p in self.module.parameters())
            key = (*self._key, shapes, first, updates, window, averaged, had)
            found = graphs.graphs.get(key)
            if found is not None and found[0].holds():
                graph = found[0]
            else:
                graph = graphs.find(Part(True, first, updates, window, averaged), self.definition, batch, key)
        except CompileStepError as error:
            graphs.give_up(error)
            return None
        return graph, leaves

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
            if graph.part.averaged:
                if clock is not None:
                    clock.mark(Phase.BACKWARD)
                self._update()
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


class OptimizationAlone(LeanOptimization):
    """Runs forward and backward without a graph where other workers have one, and exchanges gradients as those do.

    Args:
        trainer: the trainer, with everything set up.
        spans: the profile.
        graphs: the graphs of this fit, which this worker has given up in the middle of an epoch.
        update: clips and updates by the graph that the others have too: without it, their weights would differ in the
            last digit.
    """

    def __init__(
        self, trainer: Trainer, spans: ProfilerSpans, graphs: CompiledGraphs, update: Callable[[], None]
    ) -> None:
        super().__init__(trainer, spans)
        self.graphs, self.update = graphs, update
        self.training_step = InScope("training_step", self.module, self._forward)
        self.hook_after_backward, self.after_backward = self.after_backward, self._average  # type: ignore[assignment]
        self.exchanges = False

    @override
    def run(self, batch: Any, batch_idx: int, accumulating: bool) -> dict[str, Any]:
        if not self.plain_backward:
            raise CompileStepError(
                f"one of the workers cannot run graphs: {self.graphs.given_up}", "Train without compile_step."
            )
        self.exchanges = not accumulating
        with self.strategy.block_backward_sync():  # type: ignore[attr-defined]
            return super().run(batch, batch_idx, accumulating)

    @override
    def step(self, accumulating: bool) -> None:
        counters, scope = self.progress.step, self.scope
        counters.increment_ready()
        outer, scope[lightning_logging.HOOK_NAME] = scope[lightning_logging.HOOK_NAME], "optimizer_step"
        self()
        if self.before_optimizer_step is not None:
            self.before_optimizer_step(self.raw_optimizer)
        self.update()
        torch_compile.note_step(self.raw_optimizer)
        scope[lightning_logging.HOOK_NAME] = outer
        if self.clock is not None:
            self.clock.mark(Phase.OPTIMIZER)
        counters.increment_completed()

    def _forward(self, *arguments: Any) -> Any:
        """Run the step of the module itself: around it, DDP would share buffers and prepare its reducer."""
        with self.trainer.precision_plugin.train_step_context():
            return self.module.training_step(*arguments)

    def _average(self) -> None:
        if self.exchanges:
            strategy, flat = self.graphs.strategy, self.graphs.flat()
            assert strategy is not None
            found = {id(p): p.grad for p in flat.parameters if p.grad is not None}
            if missing := {id(p) for p in flat.missing(found)}:
                raise strategy.unused_error([name for name, p in self.module.named_parameters() if id(p) in missing])
            with torch.no_grad():
                flat.collect()
                flat.average(strategy)
                flat.publish(cleared=False)
        if self.hook_after_backward is not None:
            self.hook_after_backward()


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
