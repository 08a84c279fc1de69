"""Workers that are copies of the caller, that run its script again, or that are sent a payload do the same."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn

from itwinai import ItwinaiTrainer
from itwinai.errors import ConfigurationError, PayloadError, WorkerError
from itwinai.launchers.fork import why_not_fork
from itwinai.launchers.local import LocalLauncher
from itwinai.launchers.script import script_command
from itwinai.strategies import DDPStrategy, base
from tests.conftest import RunCommand, python
from tests.support.cases import Regression, loader, make_trainer


@pytest.fixture(scope="module")
def told(run_command: RunCommand, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run a script with one process, and with each kind of workers; return what it tells, and what was printed."""
    results: dict[str, Any] = {}
    for kind in ("single", "fork", "script", "payload"):
        folder = tmp_path_factory.mktemp(kind)
        ended = run_command(python("-m", "tests.support.launched", kind, str(folder / "told.json")))
        assert ended.code == 0, ended.output
        results[kind] = json.loads((folder / "told.json").read_text())
        results[kind]["output"] = ended.output
        results[kind]["runs"] = (folder / "runs").read_text().count("run")
    return results


@pytest.mark.parametrize("kind", ["fork", "script", "payload"])
def test_same_numbers_and_the_same_state_on_the_caller(kind: str, told: dict[str, Any]) -> None:
    got, want = told[kind], told["single"]
    for key in ("batches", "losses", "step", "drawn", "generator", "class", "caught"):
        assert got[key] == want[key], key
    assert got["mean"] == pytest.approx(want["mean"])
    if kind == "payload":  # which has a module without what cannot be sent
        assert got["moments"] == 4
    else:
        assert got["moments"] == want["moments"]
        for mine, theirs in zip(got["weights"], want["weights"], strict=True):
            assert mine == pytest.approx(theirs, abs=1e-5)
    assert f"2 workers launched by itwinai ({kind})" in got["output"]


def test_only_the_script_is_run_again(told: dict[str, Any]) -> None:
    # Two fits, a test and a validation, with two workers each.
    assert {kind: told[kind]["runs"] for kind in told} == {"single": 1, "fork": 1, "script": 9, "payload": 1}


def test_a_thread_that_may_hold_a_lock_is_a_reason_not_to_fork() -> None:
    assert why_not_fork() is None
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="uploader")
    thread.start()
    try:
        assert why_not_fork() == "another thread runs in this process (uploader)"
        with pytest.raises(ConfigurationError, match="not safe now: another thread.*launcher='payload' or 'script'"):
            make_trainer("ddp", 2, max_epochs=1, launcher="fork").fit(Regression(), loader(4))
        module = Regression()
        make_trainer("ddp", 2, max_epochs=1, limit_train_batches=1).fit(module, loader(4))  # by a payload
        assert module.steps_seen == [0]
    finally:
        end.set()
        thread.join()


def test_a_copy_computes_with_several_threads_after_the_caller_has(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """OpenMP's threads do not survive a fork, and whoever waits for them waits forever."""
    monkeypatch.setattr(base, "available_cores", lambda: 3)
    # pytest would keep the warning of a copy within the copy.
    monkeypatch.setattr(base, "warn_user", rank_zero_only(partial(print, flush=True)))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (torch.randn(500, 500) @ torch.randn(500, 500)).exp().sum()

        class Wide(Regression):
            def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
                self.threads = torch.get_num_threads()
                torch.randn(2_000_000).exp().sum()

        module = Wide()
        make_trainer("ddp", 2, max_epochs=1, limit_train_batches=2, cpu_threads=2).fit(module, loader(4))
        assert module.threads == 2
    finally:
        torch.set_num_threads(before)
    printed = capfd.readouterr().out
    assert (
        printed.count("2 workers compute with 4 threads on 3 cores") == 1
        and "set cpu_threads=1 (--trainer.cpu_threads 1)." in printed
    )


@pytest.mark.parametrize(("threads", "warned"), [(8, True), (1, False)])
def test_one_process_warns_of_more_threads_than_cores(
    threads: int, warned: bool, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr("itwinai.trainer.available_cores", lambda: 2)
    make_trainer("auto", 1, max_epochs=1, limit_train_batches=1, cpu_threads=threads).fit(Regression(), loader(4))
    told = [str(one.message) for one in recwarn if "cores" in str(one.message)]
    assert len(told) == warned
    assert all("1 worker computes with 8 threads on 2 cores" in text for text in told)


def test_no_script_to_run_again() -> None:
    assert script_command() is None  # a test runner is none
    with pytest.raises(
        ConfigurationError, match="this process was not started from a script.*launcher='fork' or 'payload'"
    ):
        make_trainer("ddp", 2, max_epochs=1, launcher="script").fit(Regression(), loader(4))


def test_unknown_kind() -> None:
    with pytest.raises(ConfigurationError, match="launcher='threads' is unknown; choose one of auto, fork"):
        ItwinaiTrainer(strategy="ddp", devices=2, accelerator="cpu", launcher="threads")  # type: ignore[arg-type]


def test_ray_has_workers_of_its_own() -> None:
    with pytest.raises(ConfigurationError, match="Ray starts the workers"):
        ItwinaiTrainer(strategy="ray", devices=2, accelerator="cpu", launcher="fork")


def test_what_a_pickle_would_leave_out_is_an_error() -> None:
    module = Regression()
    module.net.compile(backend="eager")
    with pytest.raises(PayloadError, match="net was compiled with .compile\\(\\).*launcher='fork'"):
        make_trainer("ddp", 2, max_epochs=1, launcher="payload").fit(module, loader(4))


class NoNew(torch.utils.data.Dataset):
    """Pickles, and does not unpickle."""

    def __new__(cls, size: int) -> NoNew:
        return super().__new__(cls)

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones(8), torch.ones(1)


def test_what_cannot_be_unpickled_is_said() -> None:
    data = torch.utils.data.DataLoader(NoNew(8), 4)
    with pytest.raises(PayloadError, match="cannot be recreated here: TypeError.*__getnewargs__.*launcher='fork'"):
        make_trainer("ddp", 2, max_epochs=1, launcher="payload").fit(Regression(), data)
    make_trainer("ddp", 2, max_epochs=1, launcher="fork").fit(Regression(), data)


def test_what_workers_change_is_written_into_the_callers_objects(tmp_path: Path) -> None:
    class Keeper:
        def __init__(self) -> None:
            self.notes: dict[str, list[int]] = {"steps": []}

    class Watched(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.keeper.notes["steps"].append(batch_idx)
            self.log_file.write(f"{self.global_rank}\n")
            return super().training_step(batch, batch_idx)

    keeper = Keeper()
    notes, steps = keeper.notes, keeper.notes["steps"]
    module = Watched()
    module.keeper = keeper
    module.layers = nn.ModuleList()
    with (tmp_path / "log").open("w") as module.log_file:
        module.log_file.write("caller\n")  # waits in the buffer when the workers are forked
        make_trainer("ddp", 2, max_epochs=1, limit_train_batches=2).fit(module, loader(4))
    assert module.keeper is keeper and keeper.notes is notes and notes["steps"] is steps
    assert steps == [0, 1]
    assert sorted((tmp_path / "log").read_text().split()) == ["0", "0", "1", "1", "caller"]


@pytest.mark.parametrize("options", [["ddp", "launcher=payload"], ["ray"]], ids=["payload", "ray"])
def test_the_scripts_own_dataset_in_spawned_processes(options: list[str], run_command: RunCommand) -> None:
    """Workers that were sent a payload have no script from which these could import it."""
    ended = run_command(python("tests/support/spawned_loader.py", *options))
    assert ended.code == 0, ended.output
    assert "sum 140.0" in ended.output


def test_what_the_user_has_frozen_stays_so() -> None:
    before = gc.get_freeze_count()
    gc.freeze()
    frozen = gc.get_freeze_count()
    make_trainer("ddp", 2, max_epochs=1).fit(Regression(), loader(8))
    assert gc.get_freeze_count() > frozen // 2 > 0  # frozen objects can still go, one by one
    if not before:
        gc.unfreeze()


class Pooling(Regression):
    """Leaves an executor behind, whose threads wait for work."""

    def on_fit_start(self) -> None:
        self.pool = ThreadPoolExecutor(2)
        self.pool.submit(int).result()


def test_an_executor_that_waits_for_work_does_not_keep_a_worker(no_leftovers: None) -> None:
    make_trainer("ddp", 2, max_epochs=1, limit_train_batches=1).fit(Pooling(), loader(4))


class Unsendable(Regression):
    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return threading.Lock()


def test_predictions_that_cannot_be_sent_back_are_named() -> None:
    with pytest.raises(PayloadError, match="The return value cannot be sent back .*lock"):
        make_trainer("ddp", 2).predict(Unsendable(), loader(4))


class StartsSlowly(DDPStrategy):
    """Gets a signal while its workers are being started."""

    signum = signal.SIGTERM

    def worker_imports(self) -> tuple[str, ...]:
        signal.raise_signal(self.signum)
        return ()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_start_ends_the_run(signum: signal.Signals, no_leftovers: None) -> None:
    strategy = StartsSlowly()
    strategy.signum = signum
    with pytest.raises(SystemExit):
        make_trainer(strategy, 2, max_epochs=500).fit(Regression(), loader(4))


def test_modules_beside_the_data_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the current folder may have the name of a module that workers need."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])  # the command line adds ""
    (tmp_path / "queue.py").write_text("raise RuntimeError('not for you')")
    make_trainer("ddp", 2, max_epochs=1, limit_train_batches=1, launcher="payload").fit(Regression(), loader(4))


def test_a_template_that_never_forked_a_worker_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no process to be killed then, and above all not this one."""
    monkeypatch.setattr("itwinai.launchers.fork_server.python_that_runs", lambda module: [sys.executable, "-c", "1/0"])
    with pytest.raises(WorkerError, match="ended with exit code 1"):
        make_trainer("ddp", 2, launcher="payload").fit(Regression(), loader(4))


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_2", "deepspeed_stage_3"])
def test_a_group_of_one_is_left(strategy: str, no_leftovers: None) -> None:
    """Nothing is left by which the next trainer would take this process for a worker, and train alone."""
    variables = dict(os.environ)
    for _ in range(2):
        make_trainer(strategy, 1, max_epochs=1, limit_train_batches=1).fit(Regression(), loader(4))
        if strategy == "ddp":  # DeepSpeed keeps the group's threads, so that later workers are sent a payload
            assert why_not_fork() is None
        assert [name for name in os.environ if "RANK" in name or "WORLD" in name] == [
            name for name in variables if "RANK" in name or "WORLD" in name
        ]
    trainer = make_trainer(strategy, 2, max_epochs=1, limit_train_batches=1)
    assert isinstance(trainer.strategy.launcher, LocalLauncher)
    trainer.fit(Regression(), loader(4))


class Unsized(tuple):
    """Refuses to tell its length, as e3nn's Irrep does."""

    def __len__(self) -> int:
        raise NotImplementedError


def test_a_sequence_that_has_no_length_is_looked_into() -> None:
    class Watched(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.held[0].append(batch_idx)
            return super().training_step(batch, batch_idx)

    steps: list[int] = []
    module = Watched()
    module.held = Unsized([steps])
    make_trainer("ddp", 2, max_epochs=1, limit_train_batches=2).fit(module, loader(4))
    assert steps == [0, 1]


class SeesDevices(Regression):
    """A module that notes what a new process has for its devices."""

    seen: dict[str, Any]

    def on_train_start(self) -> None:
        # Without a GPU, torch keeps the seed for when it uses one.
        seed_all, _ = torch.cuda._lazy_seed_tracker.manual_seed_all_cb
        seeds = [cell.cell_contents for cell in seed_all.__closure__]
        self.seen = {"seeds": seeds, "precision": torch.backends.cuda.matmul.fp32_precision}


def test_new_processes_seed_their_gpu_and_multiply_as_their_caller(no_leftovers: None) -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"  # torch's newer flag, beside which the older cannot be read
    torch.manual_seed(77)
    try:
        module = SeesDevices()
        make_trainer("ddp", 2, max_epochs=1, launcher="payload").fit(module, loader(4))
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert module.seen == {"seeds": [77], "precision": "tf32"}
