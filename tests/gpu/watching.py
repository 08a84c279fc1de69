"""Do the monitor, the profiler and the page of a run tell the truth about a GPU?"""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback

from itwinai import ItwinaiTrainer
from itwinai.callbacks import ProfilingCallback, RunSummary, SystemMonitor
from itwinai.profiling.step_timer import Phase
from tests.gpu.check import Bench, Check
from tests.gpu.machine import smi
from tests.gpu.models import Timed, Transformer, repeated
from tests.gpu.training import QUIET

BATCH = 8


def _model(bench: Bench, warm_up: int, steps: int) -> tuple[Timed, Any]:
    length = bench.size(512, 16)
    network = Transformer(*bench.size((12, 768, 32000), (1, 32, 50)), length)
    words = torch.randint(50, (BATCH, length + 1), generator=torch.Generator().manual_seed(0))
    return Timed(network, warm_up, steps), repeated((words,), warm_up + steps + 1)


def _trainer(bench: Bench, *callbacks: Callback, **arguments: Any) -> ItwinaiTrainer:
    return ItwinaiTrainer(
        accelerator=bench.accelerator,
        devices=1,
        max_epochs=1,
        precision="bf16-mixed",
        callbacks=list(callbacks),
        default_root_dir=bench.folder,
        **{**QUIET, **arguments},
    )


class AsksSmi(Callback):
    """Read nvidia-smi in the middle of the run, where the GPU is busy."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.read: dict[str, float | None] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.step:
            quantities = ("utilization.gpu", "memory.used", "power.draw", "temperature.gpu")
            self.read = {quantity: smi(quantity) for quantity in quantities}


def monitor(bench: Bench, tolerance: float = 0.15, batches: int | None = None) -> None:
    """Compare what the monitor says with nvidia-smi, and its energy with the counter of NVML."""
    steps = bench.size(150, 6)
    module, loader = _model(bench, 5, steps)
    watch, asks = SystemMonitor(interval=bench.size(0.2, 0.02)), AsksSmi(steps // 2)
    before, began = _energy_counter(), time.monotonic()
    _trainer(bench, watch, asks).fit(module, loader)
    took, after = time.monotonic() - began, _energy_counter()
    summary = watch.summary
    assert summary is not None
    bench.expect("batches", summary.batches, equal=batches or steps + 6)
    node = summary.nodes[0]
    bench.expect("quantities", len(node.quantities), at_least=3)
    for what, why in node.missing.items():
        bench.record(f"not measured: {what}", why)
    if bench.dry:
        return
    pairs = {
        "gpu0_utilization_percent": ("utilization.gpu", 1.0),
        "gpu0_memory_gb": ("memory.used", 1.048576e-3),
        "gpu0_power_w": ("power.draw", 1.0),
        "gpu0_temperature_c": ("temperature.gpu", 1.0),
    }
    for ours, (theirs, scale) in pairs.items():
        told = asks.read.get(theirs)
        if told is None or ours not in node.quantities:
            bench.expect(ours, "not measured", equal="measured")
            continue
        # The highest values come from the busy time, when nvidia-smi was asked.
        peak = node.quantities[ours].peak
        bench.expect(ours, peak, equal=told * scale, within=max(tolerance * told * scale, 3.0))
    energy = sum(use.joules for use in node.energy if use.source.startswith("gpu"))
    bench.record("energy is measured by", ", ".join(use.method for use in node.energy))
    if before is not None and after is not None:
        whole = after - before
        bench.expect("energy by the monitor", energy, at_least=0.6 * whole, at_most=1.05 * whole, unit="J")
        bench.record("energy by NVML's counter, with start and end of the fit", whole, "J")
        bench.record("mean power by the counter", whole / took, "W")
    bench.expect("energy per sample", summary.joules_per_sample or 0.0, at_least=1e-6, unit="J")


def _energy_counter() -> float | None:
    """Return the energy that the first GPU has used, in joules; None if that is not known."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(0)) / 1000
    except Exception as error:  # no package, no driver, no GPU
        print(f"no counter of energy: {error}")
        return None


def profiler(bench: Bench, tolerance: float = 0.1) -> None:
    """Compare the time of a step, and the share of its phases, with events of CUDA around them."""
    steps = bench.size(90, 20)
    module, loader = _model(bench, 25, steps)  # after the window in which operators are recorded
    profiling = ProfilingCallback(operators=True, folder=bench.folder / "profile")
    _trainer(bench, profiling).fit(module, loader)
    profile = profiling.profile
    assert profile is not None
    split = profile.splits[0]
    measured = module.seconds_per_step
    error = split.step / measured - 1
    bench.record("step, by the module", measured * 1e3, "ms")
    bench.expect("step, by the clock: error", error, equal=0.0, within=bench.size(tolerance, 3.0))
    bench.expect("between steps", split.between / split.step, at_most=bench.size(0.1, 1.0))
    bench.record("median step", split.p50 * 1e3, "ms")
    for phase, seconds in split.phases.items():
        bench.record(phase.name.lower(), seconds * 1e3, "ms")
    for phase, seconds in zip((Phase.FORWARD, Phase.BACKWARD), _by_events(bench, module), strict=True):
        ours = split.phases[phase]
        bench.record(f"{phase.name.lower()} by events", seconds * 1e3, "ms")
        if bench.cuda:
            bench.expect(f"{phase.name.lower()}: error", ours / seconds - 1, equal=0.0, within=0.25)
    traces = list((bench.folder / "profile").rglob("*trace*"))
    bench.expect("traces", len(traces), at_least=1)
    if bench.cuda:
        bench.expect("peak memory", (profile.peak_memory[0] or 0) / 1e9, at_least=0.1, unit="GB")


def _by_events(bench: Bench, module: Timed) -> tuple[float, float]:
    """Return the seconds of forward and backward of a step."""
    network = module.network.to(bench.device)
    words = torch.randint(50, (BATCH, bench.size(513, 17)), device=bench.device)
    times = []
    for _ in range(bench.size(8, 4)):
        marks = [time.perf_counter()]
        events = [torch.cuda.Event(enable_timing=True) for _ in range(3)] if bench.cuda else []
        for number in range(3):
            if events:
                events[number].record()
            if number == 0:
                with torch.autocast(bench.device.type, torch.bfloat16):
                    loss = network(words)
            elif number == 1:
                loss.backward()
            marks.append(time.perf_counter())
        bench.synchronize()
        if events:
            times.append((events[0].elapsed_time(events[1]) / 1e3, events[1].elapsed_time(events[2]) / 1e3))
        else:
            times.append((marks[1] - marks[0], marks[2] - marks[1]))
    middle = sorted(times)[len(times) // 2]
    return middle[0], middle[1]


def page(bench: Bench) -> None:
    """Write the page of a run that everything watches, and look for the sections of the GPU."""
    steps = bench.size(60, 6)
    module, loader = _model(bench, 2, steps)
    callbacks = (
        SystemMonitor(interval=0.05),
        ProfilingCallback(operators=False),
        RunSummary(path=bench.folder / "run.html"),
    )
    _trainer(bench, *callbacks, logger="csv").fit(module, loader)
    text = (bench.folder / "run.html").read_text()
    bench.expect("size", len(text), at_least=1000)
    wanted = ["cores on average"] if bench.dry else ["gpu0", torch.cuda.get_device_name(), "utilization on average"]
    for word in wanted:
        bench.expect(f"{word} on the page", str(word.lower() in text.lower()), equal="True")


CHECKS = (
    Check("monitor", "watching", "utilization, memory, power, energy against nvidia-smi", monitor, 24, 60, ("psutil",)),
    Check("profiler", "watching", "where the time goes, against events of CUDA", profiler, 23, 60),
    Check("page", "watching", "the page of a run", page, 25, 60, ("psutil",)),
)
