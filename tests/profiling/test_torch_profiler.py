"""Operators are recorded in windows of steps, summed up as torch itself does, and thrown away."""

from __future__ import annotations

import gc
import gzip
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, schedule

from itwinai.errors import ConfigurationError
from itwinai.profiling.chrome_trace import read_trace
from itwinai.profiling.operator_stats import Operator, OperatorSums
from itwinai.profiling.torch_profiler import OperatorProfile, Windows


def step(matrix: Tensor) -> None:
    """Three products and a sum."""
    (matrix @ matrix @ matrix @ matrix).sum()


def run(profile: OperatorProfile, steps: int) -> None:
    matrix = torch.ones(4, 4)
    for _ in range(steps):
        step(matrix)
        profile.step()


def operator(profile: OperatorProfile, name: str) -> Operator:
    return next(operator for operator in profile.operators if operator.name == name)


def events_of(trace: Path) -> list[dict[str, Any]]:
    with gzip.open(trace, "rt") as file:
        return json.load(file)["traceEvents"]


def steps_in(trace: Path) -> int:
    return len([event for event in events_of(trace) if str(event.get("name")).startswith("ProfilerStep#")])


def test_each_window_leaves_a_trace_and_sums(tmp_path: Path) -> None:
    profile = OperatorProfile(tmp_path / "new", 3, Windows(wait=4, warmup=1, active=2, repeat=2), memory=True)
    profile.start()
    run(profile, 6)
    assert profile.traces == [] and profile.operators == []  # the window ends with the seventh step
    run(profile, 20)
    profile.stop()
    names = ["rank-3.1.pt.trace.json.gz", "rank-3.2.pt.trace.json.gz"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
    assert profile.traces == [tmp_path / "new" / name for name in names]
    assert [steps_in(trace) for trace in profile.traces] == [2, 2]
    assert profile.steps == 4
    product = operator(profile, "aten::mm")
    assert product.calls == 3 and product.device_us is None and product.memory_bytes == 3 * 4 * 4 * 4
    assert 0 < product.cpu_us < profile.step_us  # type: ignore[operator]
    assert not any(operator.name.startswith(("Profiler", "[")) for operator in profile.operators)
    assert profile.operators == sorted(profile.operators, key=lambda operator: -operator.cpu_us)
    assert profile.communication is None
    assert profile.missing == ["the time of collective operations: the recorded steps show no collective operation"]
    assert profile.overhead > 0


def test_lines_of_torchs_profiler_for_tracers_stay_off_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for warmup in (0, 1):
        operators = OperatorProfile(tmp_path, 0, Windows(wait=1, warmup=warmup, active=1))
        operators.start()
        for _ in range(4):
            torch.ones(3).sum()
            operators.step()
        operators.stop()
        assert operators.traces
    assert "USDT" not in capfd.readouterr().err


def test_names_are_those_that_tensorboard_splits_into_worker_and_span(tmp_path: Path) -> None:
    profile = OperatorProfile(tmp_path, 12, Windows(0, 0, 1))
    profile.start()
    run(profile, 1)
    name = re.fullmatch(r"([^.]+)\.(\d+)\.pt\.trace\.json\.gz", profile.traces[0].name)
    assert name is not None and name.groups() == ("rank-12", "1")


@pytest.mark.parametrize("stacks", [False, True])
def test_sums_are_those_of_torch(stacks: bool, tmp_path: Path) -> None:
    """Calls, time and memory of every operator of a transformer, forwards, backwards and optimizer."""
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 16, batch_first=True), 1)
    optimizer = torch.optim.Adam(model.parameters())
    profiler = torch.profiler.profile(
        activities=[ProfilerActivity.CPU],
        schedule=schedule(wait=0, warmup=1, active=2, repeat=1),
        profile_memory=True,
        with_stack=stacks,
    )
    with profiler:
        for _ in range(3):
            model(torch.ones(2, 4, 16)).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            profiler.step()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    sums = OperatorSums(memory=True)
    assert sums.add(read_trace(tmp_path / "trace.json"), 2)
    ours = {operator.name: operator for operator in sums.operators()}
    in_python = re.compile(r"nn\.Module: |<built-in |.*\(\d+\): ")
    theirs = {
        event.key: event
        for event in profiler.key_averages()
        if not (event.is_user_annotation or in_python.match(event.key))
    }
    assert len(theirs) > 50 and ours.keys() == theirs.keys()
    for name, event in theirs.items():
        assert ours[name].calls * 2 == event.count, name
        assert ours[name].cpu_us * 2 == pytest.approx(event.self_cpu_time_total, abs=1), name
        assert ours[name].memory_bytes * 2 == event.self_cpu_memory_usage, name  # type: ignore[operator]


def test_events_are_thrown_away_and_sums_do_not_grow(tmp_path: Path) -> None:
    def kept() -> list[Any]:
        kinds = (torch.autograd.profiler.profile, torch.autograd.profiler_util.FunctionEvent)
        return [kept for kept in gc.get_objects() if isinstance(kept, kinds)]

    profile = OperatorProfile(tmp_path, 0, Windows(wait=1, warmup=1, active=1, repeat=3))
    gc.collect()
    before = len(kept())
    gc.disable()  # as some training loops do
    try:
        profile.start()
        run(profile, 3)
        assert len(kept()) == before
        after_one = len(pickle.dumps(profile))
        run(profile, 10)
        assert profile.steps == 3 and len(kept()) == before
        assert len(pickle.dumps(profile)) - after_one < 500  # the names of two traces
    finally:
        gc.enable()


def test_window_in_which_the_run_ends(tmp_path: Path) -> None:
    profile = OperatorProfile(tmp_path, 0, Windows(wait=1, warmup=1, active=5))
    profile.start()
    run(profile, 4)
    torch.ones(3).sin()  # of a step that fails
    profile.stop()
    assert profile.steps == 2 and operator(profile, "aten::mm").calls == 3
    assert "aten::sin" not in [operator.name for operator in profile.operators]
    assert profile.missing[0] == "window 1 of 1: the run ended in it, and 2 of its 5 steps could be recorded"
    assert len(profile.traces) == 1


@pytest.mark.parametrize(
    ("steps", "missing"),
    [
        (0, "1 of 1 windows of operators: the run ended before they began"),
        (2, "window 1 of 1: the run ended in it, and nothing could be recorded"),
        (3, "window 1 of 1: the run ended in it, and nothing could be recorded"),
    ],
)
def test_run_that_ends_too_early(steps: int, missing: str, tmp_path: Path) -> None:
    profile = OperatorProfile(tmp_path, 0, Windows(wait=2, warmup=1, active=5))
    profile.start()
    run(profile, steps)
    profile.stop()
    assert profile.missing == [missing]
    assert (profile.steps, profile.step_us, profile.operators, profile.communication) == (0, None, [], None)
    assert list(tmp_path.iterdir()) == []


def test_stop_and_step_at_any_time(tmp_path: Path) -> None:
    profile = OperatorProfile(tmp_path, 0, Windows(wait=1, warmup=0, active=2))
    profile.stop()
    run(profile, 5)
    assert profile.missing == [] and profile.peak_memory is None
    profile.start()
    profile.start()
    run(profile, 2)
    profile.stop()
    missing = list(profile.missing)
    profile.stop()
    run(profile, 5)
    assert profile.steps == 1 and profile.missing == missing
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as other:  # nothing of ours is left running
        step(torch.ones(4, 4))
    assert [event.count for event in other.key_averages() if event.key == "aten::mm"] == [3]


def test_other_profiler_of_torch(tmp_path: Path) -> None:
    profile = OperatorProfile(tmp_path, 0, Windows(wait=1, warmup=1, active=1))
    profile.start()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as other:
        with pytest.raises(ConfigurationError, match="profiler='pytorch'"):
            run(profile, 1)
        run(profile, 5)
        profile.stop()
        step(torch.ones(4, 4))
    assert len([event for event in other.events() if event.name == "aten::mm"]) == 7 * 3  # it has lost nothing


def test_other_profiler_that_begins_within_a_window(tmp_path: Path) -> None:
    profile = OperatorProfile(tmp_path, 0, Windows(wait=0, warmup=0, active=2))
    profile.start()
    run(profile, 1)
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]):
        pass
    with pytest.raises(ConfigurationError, match="only one at a time"):
        run(profile, 1)
    profile.stop()
    assert profile.traces == [] and list(tmp_path.iterdir()) == []


def test_trace_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    profile = OperatorProfile(tmp_path / "gone", 0, Windows(wait=0, warmup=0, active=1))
    profile.start()
    shutil.rmtree(tmp_path / "gone")
    with pytest.warns(UserWarning, match="trace could not be written"):
        run(profile, 2)
    profile.stop()
    assert "the trace of window 1" in profile.missing[0] and profile.traces == []


@pytest.mark.parametrize("wrong", [{"wait": -1}, {"warmup": -1}, {"active": 0}, {"repeat": 0}, {"active": 2.5}])
def test_windows_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Windows(**wrong)


def test_peak_of_memory(tmp_path: Path) -> None:
    profile = OperatorProfile(tmp_path, 0)
    profile.start()
    size = 64 << 20
    torch.ones(size, dtype=torch.uint8)
    profile.stop()
    assert profile.peak_memory is not None and profile.peak_memory > size


def event(category: str, name: str, start: float, duration: float, thread: int, operator: int = 0) -> dict[str, Any]:
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "ts": start,
        "dur": duration,
        "pid": 0,
        "tid": thread,
        "args": {"External id": operator} if operator else {},
    }


# Of a fake GPU: two steps of 100 us; in each, the host starts a product that the device finishes in the next step.
FAKE_GPU = [
    event("user_annotation", "ProfilerStep#4", 0, 100, 1),
    event("user_annotation", "ProfilerStep#5", 100, 100, 1),
    event("cpu_op", "aten::linear", 10, 30, 1, 1),
    event("cpu_op", "aten::mm", 15, 20, 1, 2),
    event("cuda_runtime", "cudaLaunchKernel", 20, 5, 1, 2),
    event("cpu_op", "aten::mm", 160, 20, 1, 3),
    event("cuda_runtime", "cudaGraphLaunch", 185, 5, 1),
    event("kernel", "sgemm(float*)", 90, 40, 7, 2),
    event("kernel", "sgemm(float*)", 190, 60, 7, 3),
    event("kernel", "void (anonymous namespace)::fused<int>(int*)", 250, 10, 7),
    event("gpu_user_annotation", "ProfilerStep#4", 90, 40, 7),
    event("gpu_user_annotation", "ProfilerStep#5", 190, 70, 7),
    event("kernel", "ncclDevKernel_AllReduce(int)", 100, 100, 20),
]


@pytest.fixture
def fake_gpu(tmp_path: Path) -> Path:
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": FAKE_GPU}))
    return path


def test_kernels_belong_to_the_operators_that_have_started_them(fake_gpu: Path) -> None:
    sums = OperatorSums(memory=False)
    assert sums.add(read_trace(fake_gpu), 2)
    operators = {operator.name: operator for operator in sums.operators()}
    assert operators["aten::mm"] == Operator("aten::mm", 1, (20 - 5 + 20) / 2, 50, None)
    assert operators["aten::linear"] == Operator("aten::linear", 0.5, 5, 0, None)
    assert operators["cudaLaunchKernel"].cpu_us == 2.5
    assert operators["void fused<int>"] == Operator("void fused<int>", 0.5, 0, 5, None)
    assert [operator.name for operator in sums.operators()][:2] == ["aten::mm", "ncclDevKernel_AllReduce"]
    assert sums.step_us == 100
    assert sums.communication is not None
    assert (sums.communication.total_us, sums.communication.overlapped_us) == (50, (30 + 10) / 2)


def test_kernels_of_an_unfinished_step_are_left_out(fake_gpu: Path) -> None:
    sums = OperatorSums(memory=False)
    assert sums.add(read_trace(fake_gpu), 1)
    operators = {operator.name: operator for operator in sums.operators()}
    assert operators["aten::mm"] == Operator("aten::mm", 1, 15, 40, None)
    assert "void fused<int>" not in operators
    assert sums.communication is not None
    assert (sums.communication.total_us, sums.communication.overlapped_us) == (30, 30)  # until the device had ended it
    assert not sums.add(read_trace(fake_gpu), 3) and sums.steps == 1
