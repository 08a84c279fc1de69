"""What `itwinai.compat.torch` takes for granted about private names."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from itwinai.compat import torch as compat_torch


def test_ddp_tells_how_long_its_exchange_takes() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(nn.Linear(64, 64))
        assert compat_torch.exchange_time(model) == (0, 0, 0)
        compat_torch.sample_exchanges(model, 1)
        for _ in range(20):  # beyond the first ten, which are always measured
            model(torch.ones(4, 64)).sum().backward()
        total, overlapped, computing = compat_torch.exchange_time(model)
        assert 0 <= overlapped <= total < 1
        assert overlapped <= computing < 1
        assert total > 0
        measured = model._get_ddp_logging_data()
        before = measured["backward_comm_time_start"]
        model(torch.ones(4, 64)).sum().backward()
        model(torch.ones(4, 64)).sum().backward()
        assert model._get_ddp_logging_data()["backward_comm_time_start"] > before
    finally:
        dist.destroy_process_group()


def test_reducer_whose_hooks_are_gone_when_it_ends() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        layer = nn.Linear(1, 1)
        exchanged: list[int] = []

        def exchange(state: Any, bucket: Any) -> Any:
            exchanged.append(bucket.index())
            done: Any = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

        exchange.__annotations__ = {}  # strings, which DDP refuses
        model = nn.parallel.DistributedDataParallel(layer)
        model.register_comm_hook(None, exchange)
        model(torch.ones(1, 1)).sum().backward()
        output = model(torch.ones(1, 1)).sum()  # prepared for a backward
        compat_torch.end_reducer(model)
        del model
        before = len(exchanged)
        output.backward()
        assert before == len(exchanged) == 1
    finally:
        dist.destroy_process_group()


def test_buffers_are_shared_once_per_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(nn.BatchNorm1d(2))
        shared: list[int] = []
        monkeypatch.setattr(model, "_sync_module_buffers", shared.append)
        for exchanges in (False, True, True, False, False):
            with nullcontext() if exchanges else model.no_sync():
                model(torch.rand(3, 2))
        as_ddp = list(shared)
        model.require_forward_param_sync = True
        for exchanges in (False, True, True, False, False):
            compat_torch.share_buffers(model, exchanges)
        assert shared == 2 * as_ddp == [0] * 6
    finally:
        dist.destroy_process_group()


def test_backward_passes_have_numbers_and_ends() -> None:
    told: list[Any] = []

    def within(gradient: Tensor) -> None:
        told.append(compat_torch.backward_pass())
        compat_torch.after_backward_pass(lambda: told.append("end"))

    x = torch.ones(1, requires_grad=True)
    x.register_hook(lambda gradient: told.append("later"))
    y = x * 2
    y.register_hook(within)
    y.sum().backward()
    first, *rest = told
    assert rest == ["later", "end"]
    (x * 2).sum().backward()
    told.clear()
    y = x * 2
    y.register_hook(within)
    y.sum().backward()
    assert told[0] > first >= 0
    assert compat_torch.backward_pass() == -1


def test_profiler_of_torch_is_noticed_while_it_records() -> None:
    assert not compat_torch.is_profiling()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        assert compat_torch.is_profiling()
    assert not compat_torch.is_profiling()


@pytest.mark.parametrize("kind", ["same", "mixed types", "sparse", "one"])
def test_norm_of_all_is_that_of_torch(kind: str) -> None:
    tensors = [torch.randn(3, 4), torch.randn(5), torch.randn(())]
    if kind == "mixed types":
        tensors[1] = tensors[1].double()
    elif kind == "sparse":
        tensors[1] = torch.sparse_coo_tensor([[1, 1, 3]], [1.0, 2.0, -4.0], (5,))
    elif kind == "one":
        tensors = tensors[:1]
    dense = torch.cat([t.to_dense().double().flatten() for t in tensors])
    torch.testing.assert_close(compat_torch.total_norm(tensors).double(), dense.norm(), rtol=1e-5, atol=1e-6)


def test_settings_of_the_process() -> None:
    before, options = compat_torch.validates_distributions(), compat_torch.print_options()
    try:
        torch.distributions.Distribution.set_default_validate_args(not before)
        assert compat_torch.validates_distributions() is not before
        torch.set_printoptions(precision=2)
        assert compat_torch.print_options()["precision"] == 2
        compat_torch.set_print_options(options)
        assert str(torch.tensor(0.123456)) == "tensor(0.1235)"
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)
        compat_torch.set_print_options(options)


def test_version_of_a_tensor() -> None:
    tensor = torch.zeros(2)
    before = compat_torch.version_of(tensor)
    tensor.add_(1)
    assert compat_torch.version_of(tensor) != before
    with torch.inference_mode():
        assert compat_torch.version_of(torch.zeros(2)) is None


def test_compiled_modules_are_known() -> None:
    module = nn.Linear(1, 1)
    assert not compat_torch.is_compiled(module) and not compat_torch.is_compiled_in_place(module)
    assert compat_torch.is_compiled(torch.compile(module))
    module.compile()
    assert compat_torch.is_compiled_in_place(module)


def test_hooks_on_parameters() -> None:
    module, other = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    seen: list[bool] = []
    module.weight.register_hook(lambda gradient: 3 * gradient)
    module.weight.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter is other.weight))
    compat_torch.register_parameter_hooks(other, compat_torch.parameter_hooks(module))
    other(torch.ones(1, 1)).backward()
    assert other.weight.grad is not None and other.weight.grad.item() == 3
    assert seen == [True]
    assert compat_torch.parameter_hooks(nn.Linear(1, 1)) == {}


class Refusing(Tensor):
    """A tensor that refuses everything."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise ValueError(f"{func} is refused")


class Elsewhere(Tensor):
    """A tensor that holds its values elsewhere."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError


def test_plain_tensor_shares_memory_and_graph() -> None:
    weight = torch.ones(2, requires_grad=True)
    refusing = (2 * weight).sum().as_subclass(Refusing)
    plain = compat_torch.plain_tensor(refusing)
    assert type(plain) is Tensor
    (3 * plain).backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [6.0, 6.0]
    parameter = torch.nn.Parameter(torch.ones(1))
    assert type(compat_torch.plain_tensor(parameter)) is Tensor
    assert compat_torch.plain_tensor(parameter).data_ptr() == parameter.data_ptr()


def test_plain_tensor_leaves_those_that_hold_their_values_elsewhere() -> None:
    wrapper = Tensor._make_wrapper_subclass(Elsewhere, (1,))  # type: ignore[attr-defined]
    assert compat_torch.plain_tensor(wrapper) is wrapper


def test_store_is_another_object_on_the_same_data(process_group: None) -> None:
    def innermost(store: Any) -> Any:
        while isinstance(store, dist.PrefixStore):
            store = store.underlying_store
        return store

    default = dist.distributed_c10d._get_default_store()  # type: ignore[attr-defined]
    store = compat_torch.default_store()
    # A connection of its own: a thread that waits at one of them must not hold up the other.
    assert isinstance(innermost(store), dist.TCPStore)
    assert innermost(store) is not innermost(default)
    store.set("ours", "1")
    default.set("theirs", "2")
    assert default.check(["ours"]) and store.check(["theirs"])
