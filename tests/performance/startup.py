"""Measure how long a command takes until the first training step begins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.performance.cases import ITWINAI, LIGHTNING, Case
from tests.performance.measure import Sample
from tests.performance.workers import REPOSITORY, TIMEOUT, ContenderFailed, environment, tail

_CONFIG = """\
trainer:
  accelerator: cpu
  max_epochs: 1
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: {folder}
model:
  class_path: tests.performance.modules.StampedRegression
  init_args:
    stamp: {folder}/stamp
data:
  class_path: tests.performance.modules.BatchData
"""


def measure_startup(case: Case, repeats: int, tell: Callable[[str], None]) -> list[Sample]:
    """Measure the wall time from the start of the command to the first step, after one run that is not counted.

    Args:
        case: the case.
        repeats: number of runs of each command.
        tell: is told of the progress.
    """
    commands = {
        LIGHTNING: [sys.executable, "-m", "tests.performance.stock_cli", "fit", "--trainer.devices", "1"],
        ITWINAI: [
            str(Path(sysconfig.get_path("scripts"), "itwinai")),
            *("fit", "--strategy", "ddp", "--devices", str(case.workers)),
        ],
    }
    samples = []
    for repeat in range(-1, repeats):  # the first run reads Python's files from the disk, the others from memory
        tell(f"{case.name}: repeat {repeat + 1} of {repeats}" if repeat >= 0 else f"{case.name}: warming up")
        for name in case.contenders:
            seconds = _seconds_to_first_step(name, commands[name])
            if repeat >= 0:
                samples.append(Sample(name, repeat, wall=seconds))
    return samples


def _seconds_to_first_step(name: str, command: list[str]) -> float:
    with tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True) as folder:
        config, stamp, log = Path(folder, "config.yaml"), Path(folder, "stamp"), Path(folder, "output.log")
        config.write_text(_CONFIG.format(folder=folder))
        started = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--config", str(config)],
                env=environment(),
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            code = process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            raise ContenderFailed(f"{name} does not end. The end of its output:\n{tail(log)}") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if code or not stamp.exists():
            raise ContenderFailed(f"{name} ended with exit code {code}. The end of its output:\n{tail(log)}")
        return float(stamp.read_text()) - started
