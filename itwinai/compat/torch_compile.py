"""Private names of torch's compiler: traces of a whole training step, and the inductor that compiles them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Compiled = Callable[[list[Tensor]], list[Tensor]]


class FakeTensors:
    """Tensors without memory that stand for real ones while a step is traced."""

    def __init__(self) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.real: dict[int, Tensor] = {}  # by the id of the fake
        self._fakes: dict[int, Tensor] = {}  # by the id of the real one
        self._kept: list[Tensor] = []
        self.parameters: list[Tensor] = []  # their stand-ins

    def of(self, tensor: Tensor) -> Tensor:
        """Return what stands for a tensor, a leaf of the graph like it; always the same for the same tensor."""
        if id(tensor) not in self._fakes:
            with outside_of_trace():
                # From an alias: that a tensor is a view, or has a gradient, is none of the trace's business.
                fake: Tensor = self.mode.from_tensor(tensor.detach(), static_shapes=True)
                fake = nn.Parameter(fake, False) if isinstance(tensor, nn.Parameter) else fake
                self._fakes[id(tensor)] = fake.requires_grad_(tensor.requires_grad)
            self.real[id(fake)] = tensor
            self._kept += [tensor, fake]
            if tensor.requires_grad or isinstance(tensor, nn.Parameter):
                self.parameters.append(self._fakes[id(tensor)])
        return self._fakes[id(tensor)]


def trace(function: Callable[[], Sequence[Tensor]], fakes: FakeTensors) -> tuple[Any, list[Tensor]]:
    """Trace a function of fake tensors, backward passes and changes in place included.

    Args:
        function: takes nothing, works on fake tensors, and returns some.
        fakes: where they come from.

    Returns:
        A graph in which nothing is changed in place but its inputs, at its end, and the real tensors that are the
        inputs.
    """
    import torch._inductor.lowering  # which some of the decompositions look for
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    known = list(fakes.parameters)
    with fakes.mode:
        traced = make_fx(lambda *_: function())(*known)
    inputs = [fakes.real[id(fake)] for fake in known] + _lift_constants(traced, fakes)
    stand_ins = [fakes.mode.from_tensor(tensor.detach(), static_shapes=True) for tensor in inputs]
    # These would turn draws of random numbers into others: their own kernels draw what they draw without a compiler.
    drawing = (torch.ops.aten.bernoulli, torch.ops.aten.native_dropout, torch.ops.aten.rrelu_with_noise)
    table = {op: how for op, how in select_decomp_table().items() if getattr(op, "overloadpacket", op) not in drawing}
    with fakes.mode, torch.no_grad():
        graph = make_fx(torch.func.functionalize(traced, remove="mutations"), decomposition_table=table)(*stand_ins)
    graph.graph.eliminate_dead_code()
    kept = []
    for node, tensor in zip(graph.graph.find_nodes(op="placeholder"), inputs, strict=True):
        if node.users:
            kept.append(tensor)
        else:
            graph.graph.erase_node(node)
    graph.recompile()
    return graph, kept


def _lift_constants(traced: Any, fakes: FakeTensors) -> list[Tensor]:
    """Turn the tensors that a trace has come across into its inputs; return the real ones in their order."""
    inputs: dict[int, tuple[Tensor, Any]] = {}
    graph = traced.graph
    first = next(node for node in graph.nodes if node.op not in ("placeholder", "get_attr"))
    for node in graph.find_nodes(op="get_attr"):
        found = traced
        for name in node.target.split("."):
            found = getattr(found, name)
        real = fakes.real.get(id(found), found)
        if id(real) not in inputs:
            with graph.inserting_before(first):
                inputs[id(real)] = (real, graph.placeholder(f"input_{len(inputs)}"))
        node.replace_all_uses_with(inputs[id(real)][1])
        graph.erase_node(node)
    traced.recompile()
    return [real for real, _ in inputs.values()]


def compile_graph(graph: Any, inputs: Sequence[Tensor], fakes: FakeTensors) -> Compiled:
    """Compile a graph of `trace` by torch's inductor, which keeps what it has compiled in a folder for other runs.

    Args:
        graph: the graph.
        inputs: tensors like those that it will be given.
        fakes: of the trace.

    Returns:
        A function of a list of tensors, which it empties, to the list of the graph's outputs.
    """
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner

    stand_ins = [fakes.mode.from_tensor(tensor.detach(), static_shapes=True) for tensor in inputs]
    # One worker: the others are processes that stay. Draws and roundings as in eager PyTorch.
    settings = {
        "fallback_random": True,
        "emulate_precision_casts": True,
        "size_asserts": False,
        "compile_threads": 1,
    }
    if all(tensor.device.type == "cpu" for tensor in inputs):
        # Convolutions with channels last cost more in conversions there than they save.
        settings["layout_optimization"] = False
    with config.patch(settings), tracing(TracingContext(fakes.mode)), torch.no_grad():
        compiled: Any = compile_fx_inner(graph, stand_ins)
    # Without the span of a profiler around it, which takes as long as a small graph.
    return compiled.current_callable or compiled


def needs_values(error: BaseException) -> bool:
    """Return whether a trace has failed since a number was asked for that only the data can tell."""
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        UnsupportedFakeTensorException,
        UnsupportedOperatorException,
    )
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    return isinstance(
        error,
        (
            DataDependentOutputException,
            DynamicOutputShapeException,
            UnsupportedFakeTensorException,
            UnsupportedOperatorException,
            GuardOnDataDependentSymNode,
        ),
    )


@contextmanager
def outside_of_trace() -> Iterator[None]:
    """Let tensors that are made inside a trace be real ones, which are no part of it."""
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():
        yield


@contextmanager
def without_other_compilers() -> Iterator[None]:
    """Let what ``torch.compile`` has wrapped run as it was written."""
    with torch.compiler.set_stance("force_eager"):
        yield


def flatten(tree: Any) -> tuple[list[Any], Any]:
    """Return the leaves of nested lists, tuples and dicts, and their structure, which can be compared and hashed."""
    return torch.utils._pytree.tree_flatten(tree)


def unflatten(leaves: list[Any], structure: Any) -> Any:
    """Undo `flatten`."""
    return torch.utils._pytree.tree_unflatten(leaves, structure)


def note_step(optimizer: torch.optim.Optimizer) -> None:
    """Let learning rate schedulers know that the optimizer has stepped; they warn otherwise."""
    optimizer._opt_called = True  # type: ignore[attr-defined]


def has_own_step(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether somebody has replaced or hooked the ``step`` of an optimizer, learning rate schedulers apart."""
    step = vars(optimizer).get("step")
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    return any(hooks) or (step is not None and not hasattr(step, "_wrapped_by_lr_sched"))


def step_dtype() -> torch.dtype:
    """Return the type in which torch's optimizers count their steps."""
    return torch.float64 if torch.get_default_dtype() is torch.float64 else torch.float32


def own_hooks(module: nn.Module) -> bool:
    """Return whether hooks that are not torch's own are registered on a module itself, forward or backward."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooks = [hook for name in names for hook in getattr(module, name, {}).values()]
    return any(not (getattr(hook, "__module__", None) or type(hook).__module__).startswith("torch.") for hook in hooks)
