"""The monitor measures what a run uses, logs it at log steps, sums it up, and never ends a run."""

from __future__ import annotations

import csv
import dataclasses
import os
import pickle
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from itwinai.callbacks.system_monitor import SystemMonitor
from itwinai.compat import lightning_loops
from itwinai.errors import ConfigurationError, MissingPackageError
from itwinai.monitoring.monitor_summary import MonitorSummary
from tests.conftest import REPOSITORY, python
from tests.support.cases import Regression, loader, make_trainer
from tests.support.fake_nvml import FakeGpu, FakeNvml

THREAD = "itwinai-system-monitor"


class Busy(Regression):
    """Computes for a while in every step."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        until = time.process_time() + 0.03
        while time.process_time() < until:
            pass
        return super().training_step(batch, batch_idx)


class Counts(Regression):
    """Counts the samples that it is given, and does not say."""

    samples = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.samples += len(batch[0])
        return super().training_step(batch, batch_idx)


class Fails(Busy):
    """Fails in its sixth step."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if batch_idx == 5:
            raise RuntimeError("as planned")
        return super().training_step(batch, batch_idx)


@pytest.fixture
def fake_gpus(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    import codecarbon.core.emissions  # noqa: F401 - it looks for GPUs when it is first imported, and keeps them open

    nvml = FakeNvml([FakeGpu("GPU-a"), FakeGpu("GPU-b", millijoules_per_reading=None)])
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return nvml


def logged(folder: Path) -> list[dict[str, str]]:
    """Return the rows that CSVLogger has written of the system."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = [{name: value for name, value in row.items() if value} for row in rows]
    return [row for row in found if any(name.startswith("system/") for name in row)]


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == THREAD]


def summary_of(monitor: SystemMonitor) -> MonitorSummary:
    assert monitor.summary is not None
    return monitor.summary


def test_run_in_this_process(tmp_path: Path, fake_gpus: FakeNvml) -> None:
    monitor = SystemMonitor(interval=0.05, country="DEU")
    pickle.dumps(monitor)
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = make_trainer("auto", 1, callbacks=[monitor], logger=logger, max_epochs=2, log_every_n_steps=5)
    data = DataLoader(loader(8).dataset, batch_size=8, num_workers=1, persistent_workers=True)
    trainer.fit(Busy(), data)
    rows = logged(tmp_path)
    steps = [int(row["step"]) for row in rows]
    assert set(steps) <= {4, 9, 12, 14, 19, 24, 25}  # log steps, and the ends of epochs
    assert steps == sorted(set(steps))
    assert len(steps) >= 3
    assert max(float(row.get("system/cpu_percent", 0)) for row in rows) > 5
    assert {float(row["system/gpu0_utilization_percent"]) for row in rows} == {80.0}

    summary = summary_of(monitor)
    (node,) = summary.nodes
    assert (node.name, node.workers) == (socket.gethostname(), 1)
    assert (summary.batches, summary.samples) == (26, 206)
    assert node.quantities["processes"].peak >= 2  # the loader's worker too
    assert node.quantities["memory_gb"].peak > 0.1
    assert node.quantities["cpu_percent"].samples > 2  # also between the first and the last
    assert {use.source: use.method for use in node.energy} == {"gpu0": "counter", "gpu1": "power"}
    assert summary.joules == pytest.approx(sum(use.joules for use in node.energy))
    assert summary.joules_per_sample == pytest.approx(summary.joules / 206)
    assert summary.emissions is not None and summary.emissions.place == "Germany"
    assert 0 < node.cost.share < 1
    assert not threads()
    assert fake_gpus.open == 0
    pickle.dumps(monitor)

    (section,) = monitor.report()
    assert section.facts["GPU"].startswith("80 % utilization on average of 2, 30.0 GB at most")
    assert section.facts["energy"].endswith("Wh)")
    assert re.fullmatch(r"[\d.]+ m?J, validation included", section.facts["energy per sample"])
    assert "Germany" in section.facts["CO2"] and "codecarbon" in section.facts["CO2"]
    assert " % of one core" in section.facts["cost of sampling"]
    assert [picture.title.split()[0] for picture in section.pictures] == ["Utilization", "Memory"]
    assert all(picture.svg.startswith("<svg") for picture in section.pictures)
    assert any("not exposed here" in line or "package" in line for line in section.missing) or len(node.energy) > 2


def test_two_workers_have_one_sampler_that_sees_both(tmp_path: Path) -> None:
    monitor = SystemMonitor(interval=0.05)
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = make_trainer("ddp", 2, callbacks=[monitor], logger=logger, max_epochs=2, log_every_n_steps=3)
    trainer.fit(Busy(), loader(8))
    rows = logged(tmp_path)
    assert rows and all(int(row["step"]) % 3 == 2 or int(row["step"]) in (6, 13) for row in rows)
    summary = summary_of(monitor)  # it has come back from the worker
    (node,) = summary.nodes
    assert node.workers == 2
    assert node.quantities["processes"].mean == 2
    assert (summary.batches, summary.samples) == (14, 206)
    assert monitor.report()[0].tables
    assert pickle.loads(pickle.dumps(monitor)).summary == summary


def test_two_nodes(tmp_path: Path) -> None:
    """Of one worker each, both on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "nodes"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(REPOSITORY)}
    workers = [
        subprocess.Popen(
            python("tests/support/monitored.py", str(tmp_path)),
            cwd=REPOSITORY,
            env={**os.environ, **common, "RANK": str(rank), "GROUP_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [worker.wait(timeout=200) for worker in workers] == [0, 0]
    summary: MonitorSummary = pickle.loads((tmp_path / "summary").read_bytes())
    host = socket.gethostname()
    assert [(node.name, node.workers) for node in summary.nodes] == [(f"{host}-0", 1), (f"{host}-1", 1)]
    assert all(node.quantities["processes"].peak == 1 for node in summary.nodes)  # nobody counts the other's
    rows = logged(tmp_path)
    ends = [row for row in rows if f"system/{host}-1/cpu_percent" in row]
    assert [int(row["step"]) for row in ends] == [6, 13]
    assert all("system/memory_gb" not in row for row in ends)
    assert any("system/cpu_percent" in row for row in rows)


def test_samples_of_a_run_that_stops_and_continues(tmp_path: Path) -> None:
    middle = ModelCheckpoint(tmp_path, every_n_train_steps=6)
    monitor, module = SystemMonitor(gpus=False), Counts()
    options = {"callbacks": [middle, monitor], "enable_checkpointing": True}
    make_trainer("auto", 1, max_steps=6, **options).fit(module, loader(8))
    assert summary_of(monitor).samples == module.samples == 48
    monitor, module = SystemMonitor(gpus=False), Counts()
    trainer = make_trainer("auto", 1, callbacks=[monitor], max_epochs=2)
    trainer.fit(module, loader(8), ckpt_path=middle.best_model_path)
    assert summary_of(monitor).samples == module.samples == 206 - 48


def test_energy_per_batch_where_samples_cannot_be_counted(fake_gpus: FakeNvml) -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            for _ in range(9):
                yield torch.ones(4, 8), torch.ones(4, 1)

    monitor = SystemMonitor(interval=0.05)
    trainer = make_trainer("auto", 1, callbacks=[monitor], max_epochs=1)
    trainer.fit(Busy(), DataLoader(Stream(), batch_size=None))
    assert (summary_of(monitor).batches, summary_of(monitor).samples) == (9, None)
    facts = monitor.report()[0].facts
    assert "energy per sample" not in facts
    assert re.fullmatch(r"[\d.]+ m?J, validation included", facts["energy per batch"])
    assert "average of the world" in facts["CO2"]


def test_gpu_that_fails_half_way_does_not_end_the_run(fake_gpus: FakeNvml, caplog: pytest.LogCaptureFixture) -> None:
    fake_gpus.gpus[0].fails_after = 3
    monitor = SystemMonitor(interval=0.02)
    trainer = make_trainer("auto", 1, callbacks=[monitor], max_epochs=9)  # for more than a second: less is not told
    trainer.fit(Busy(), loader(8))
    assert trainer.current_epoch == 9
    node = summary_of(monitor).nodes[0]
    lost, other = node.energy
    assert 0 < lost.seconds < other.seconds
    missing = monitor.report()[0].missing
    assert any(line.startswith("gpu0_") and "GPU is lost; from" in line for line in missing)
    assert any(line.startswith("energy of gpu0: only 0 s of") for line in missing)
    assert not any(line.startswith("energy of gpu1") for line in missing)


def test_run_that_fails_keeps_what_was_measured() -> None:
    monitor = SystemMonitor(interval=0.02)
    with pytest.raises(RuntimeError, match="as planned"):
        make_trainer("auto", 1, callbacks=[monitor], max_epochs=1).fit(Fails(), loader(8))
    assert not threads()
    summary = summary_of(monitor)
    assert summary.batches == 5
    assert summary.nodes[0].quantities["memory_gb"].peak > 0
    assert any("ended by RuntimeError" in line for line in monitor.report()[0].missing)
    pickle.dumps(monitor)


def test_several_fits_in_a_row() -> None:
    class Watches(Callback):
        counts: list[int] = []

        def on_train_batch_start(self, *args: Any) -> None:
            self.counts.append(len(threads()))

    monitor = SystemMonitor(interval=0.02, gpus=False)
    assert monitor.report() == []
    summaries = []
    for epochs in (1, 2):
        trainer = make_trainer("auto", 1, callbacks=[monitor, Watches()], max_epochs=epochs)
        trainer.fit(Regression(), loader(8))
        summaries.append(summary_of(monitor))
        trainer.validate(Regression(), loader(8), verbose=False)
        assert monitor.summary is summaries[-1]  # only a fit is measured
    assert [summary.batches for summary in summaries] == [13, 26]
    assert set(Watches.counts) == {1}
    trainer.fit(Regression(), loader(8))  # which has done all its epochs
    assert summary_of(monitor).batches == 0
    assert not threads()


def test_no_gpus_are_asked_for_if_not_wanted(fake_gpus: FakeNvml) -> None:
    monitor = SystemMonitor(gpus=False)
    make_trainer("auto", 1, callbacks=[monitor], max_epochs=1).fit(Regression(), loader(8))
    assert fake_gpus.gpus[0].readings == 0
    assert not any("gpu" in name for name in summary_of(monitor).nodes[0].quantities)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": 0}, "interval must be .* above 0 and at most 60; got 0"),
        ({"interval": -1.0}, "interval"),
        ({"interval": 61}, "interval"),
        ({"interval": float("nan")}, "interval"),
        ({"interval": "1s"}, "got '1s'"),
        ({"interval": True}, "got True"),
        ({"country": "Germany"}, "country='Germany' .*ISO 3166 alpha-3"),
        ({"country": "XXX"}, "country='XXX'"),
        ({"gpus": 2}, "got 2.* CUDA_VISIBLE_DEVICES"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SystemMonitor(**arguments)


def test_missing_packages(monkeypatch: pytest.MonkeyPatch, fake_gpus: FakeNvml) -> None:
    import importlib.util

    find = importlib.util.find_spec
    absent = {"psutil"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in absent else find(name, *rest))

    def fit(**options: Any) -> SystemMonitor:
        monitor = SystemMonitor(interval=0.02, **options)
        make_trainer("auto", 1, callbacks=[monitor], max_epochs=1).fit(Busy(), loader(8))
        return monitor

    with pytest.raises(MissingPackageError, match=r"psutil.*itwinai\[watch\]"):
        fit()
    absent = {"codecarbon", "matplotlib"}
    with pytest.raises(MissingPackageError, match="codecarbon"):  # asked for by name
        fit(country="DEU")
    (section,) = fit().report()
    assert "CO2" not in section.facts
    assert any(line.startswith("CO2: ") and "codecarbon" in line for line in section.missing)
    assert any(line.startswith("pictures: ") and "matplotlib" in line for line in section.missing)
    assert section.tables


def test_summary_cannot_be_changed() -> None:
    summary = MonitorSummary((), 1.0, 0, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        summary.batches = 3  # type: ignore[misc]
    assert (summary.joules, summary.joules_per_sample, summary.joules_per_batch) == (None, None, None)


def test_our_loop_calls_no_hook_per_step_and_lightning_s_own_gets_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[int] = []
    monkeypatch.setattr(SystemMonitor, "on_train_batch_end", lambda *args: called.append(args[-1]))
    trainer = make_trainer("auto", 1, callbacks=[SystemMonitor()], max_epochs=1)
    trainer.fit(Busy(), loader(8))
    assert called == []
    monkeypatch.undo()
    monkeypatch.setattr(lightning_loops, "VERIFIED_LOOPS", ())
    logger = CSVLogger(tmp_path, name="", version="")
    options = {"logger": logger, "max_epochs": 1, "log_every_n_steps": 5}
    with pytest.warns(UserWarning, match="uses Lightning's own loops"):
        trainer = make_trainer("auto", 1, callbacks=[SystemMonitor(interval=0.05)], **options)
    trainer.fit(Busy(), loader(8))
    steps = [int(row["step"]) for row in logged(tmp_path)]
    assert steps and set(steps) <= {4, 9, 12}
