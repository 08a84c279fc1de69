"""Workers are forked off a process that has imported everything, and are as new processes all the same."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from itwinai.errors import WorkerError
from itwinai.launchers.fork_server import worker_title
from tests.conftest import RunCommand, python
from tests.support.cases import Regression, loader, make_trainer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")


class Curious(Regression):
    """Finds out about the process in which it is trained or validated."""

    def look(self) -> None:
        process = psutil.Process()
        self.seen = {
            "parent": os.getppid(),
            "name": process.name(),
            "folder": os.getcwd(),
            "variable": os.environ.get("ITWINAI_TEST_VARIABLE"),
            "leader": os.getpgrp() == os.getsid(0) == os.getpid(),
            "interrupt": signal.getsignal(signal.SIGINT) is not signal.SIG_IGN,
            "child": signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL,
            "argv": sys.argv,
        }
        print(f"{self.global_rank} looks", flush=True)

    on_fit_start = look
    on_validation_start = look


def test_later_launches_of_a_trainer_fork_off_the_same_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], no_leftovers: None
) -> None:
    module = Curious()
    trainer = make_trainer("ddp", 2, max_epochs=1, limit_train_batches=1, launcher="payload")
    trainer.fit(module, loader(4))
    first = module.seen
    assert first["name"] == worker_title(0)
    assert first["leader"] and first["interrupt"] and first["child"]
    assert first["argv"] == sys.argv
    template = psutil.Process(first["parent"])
    assert template.ppid() == os.getpid()
    assert sorted(line for line in capfd.readouterr().out.splitlines() if "looks" in line) == ["0 looks", "1 looks"]

    # What has changed on the caller meanwhile, the workers of the next launch know.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ITWINAI_TEST_VARIABLE", "set")
    with capfd.disabled():  # other streams
        trainer.validate(module, loader(4), verbose=False)
    assert "looks" not in capfd.readouterr().out
    assert (module.seen["folder"], module.seen["variable"]) == (str(tmp_path), "set")
    assert module.seen["parent"] == first["parent"]

    # This one is read when libraries are loaded, which the workers would not do again.
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    trainer.validate(module, loader(4), verbose=False)
    assert module.seen["parent"] != first["parent"]
    assert not template.is_running() or template.status() == psutil.STATUS_ZOMBIE
    template = psutil.Process(module.seen["parent"])

    # It goes with the trainer.
    del trainer
    module.trainer = None
    gc.collect()
    assert not template.is_running()


class Orphaned(Regression):
    """Loses the process that it was forked off."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 3 and self.global_rank == 1:
            os.kill(os.getppid(), signal.SIGKILL)
        if batch_idx == 4:
            time.sleep(600)  # stands for a long step; the launcher ends it


def test_workers_whose_template_is_killed(no_leftovers: None) -> None:
    started = time.monotonic()
    with pytest.raises(WorkerError, match="ended with exit code 1 before it had a result"):
        make_trainer("ddp", 2, max_epochs=1, launcher="payload").fit(Orphaned(), loader(4))
    assert time.monotonic() - started < 60


def test_workers_of_the_command_line_are_copies_of_it(run_command: RunCommand, tmp_path: Path) -> None:
    """What the command has imported is not imported again."""
    (tmp_path / "own.py").write_text(
        "import os, psutil, sys\n"
        "from tests.support.cases import Regression, loader\n"
        "class Own(Regression):\n"
        "    def on_fit_start(self):\n"
        "        copied = psutil.Process(os.getppid()).cmdline() == psutil.Process().cmdline()\n"
        "        print(f'{copied} torch is {\"torch\" in sys.modules}\\n', end='')\n"  # one piece: two workers write
        "    def train_dataloader(self):\n"
        "        return loader(4)\n"
    )
    quiet = [f"--trainer.{flag}=false" for flag in ("logger", "enable_checkpointing", "enable_model_summary")]
    line = ["-m", "itwinai.cli.main", "fit", "--model=own.Own", "--trainer.max_epochs=1", *quiet]
    ended = run_command(python(*line, "--strategy=ddp", "--devices=2", "--trainer.accelerator=cpu"), cwd=tmp_path)
    assert ended.code == 0, ended.output
    assert ended.output.count("True torch is True") == 2, ended.output
