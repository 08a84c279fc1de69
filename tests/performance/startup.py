"""How long commands and scripts take until the first training step begins.

``python -m tests.performance.startup [--repeats N] [--only NAME,NAME]`` measures all of them, by turns.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
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
tune:
  metric: loss
  num_samples: 1
  report_on: epoch
  storage: {folder}
  space:
    trainer.gradient_clip_val: {{choice: [1.0]}}
"""

# Imports in the order of a formatter, unless it says otherwise.
_LIGHTNING = """\
import lightning as L
from tests.performance.modules import BatchData, StampedRegression

if __name__ == "__main__":
    trainer = L.Trainer(devices={devices}, {flags})
    trainer.fit(StampedRegression("{folder}/stamp"), datamodule=BatchData())
"""
_ITWINAI = """\
{before}
from itwinai import ItwinaiTrainer
from tests.performance.modules import BatchData, StampedRegression

if __name__ == "__main__":
    trainer = ItwinaiTrainer(devices={devices}, strategy="{strategy}", {flags})
    trainer.fit(StampedRegression("{folder}/stamp"), datamodule=BatchData())
"""
_RAW = """\
import time
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

data = DataLoader(TensorDataset(torch.randn(64, 32), torch.randn(64, 1)), 8)
model = nn.Linear(32, 1)
optimizer = torch.optim.Adam(model.parameters())
for x, y in data:
    stamp = open("{folder}/stamp", "x") if optimizer.state == {{}} else None
    if stamp is not None:
        stamp.write(repr(time.monotonic()))
        stamp.close()
    optimizer.zero_grad()
    nn.functional.mse_loss(model(x), y).backward()
    optimizer.step()
"""
_FLAGS = (
    "accelerator='cpu', max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, "
    "enable_model_summary=False"
)
_SCRIPTS = {
    "script: raw torch, 1 process": _RAW,
    "script: lightning, 1 process": _LIGHTNING.replace("{devices}", "1"),
    "script: lightning, ddp, 2 workers": _LIGHTNING.replace("{devices}", "2"),
    "script: itwinai, 1 process": _ITWINAI.replace("{devices}", "1").replace("{strategy}", "auto"),
    "script: itwinai, ddp, 2 workers": _ITWINAI.replace("{devices}", "2").replace("{strategy}", "ddp"),
    "script: itwinai after lightning, ddp, 2 workers": _ITWINAI.replace("{before}", "import lightning")
    .replace("{devices}", "2")
    .replace("{strategy}", "ddp"),
    "script: itwinai, ray, 2 workers": _ITWINAI.replace("{devices}", "2").replace("{strategy}", "ray"),
}
_COMMANDS = {
    "command: lightning, 1 process": ("-m", "tests.performance.stock_cli", "fit", "--trainer.devices", "1"),
    "command: itwinai fit, ddp, 2 workers": ("itwinai", "fit", "--strategy", "ddp", "--devices", "2"),
    "command: itwinai fit, ray, 2 workers": ("itwinai", "fit", "--strategy", "ray", "--devices", "2"),
    "command: itwinai tune, first trial": ("itwinai", "tune"),
}
UNIT = "script: lightning, 1 process"
"""What the others are compared with."""


def measure_startup(case: Case, repeats: int, tell: Callable[[str], None]) -> list[Sample]:
    """Measure the wall time from the start of the command to the first step, after one run that is not counted.

    Args:
        case: the case.
        repeats: number of runs of each command.
        tell: is told of the progress.
    """
    starts = {LIGHTNING: "command: lightning, 1 process", ITWINAI: "command: itwinai fit, ddp, 2 workers"}
    samples = []
    for repeat in range(-1, repeats):  # the first run reads Python's files from the disk, the others from memory
        tell(f"{case.name}: repeat {repeat + 1} of {repeats}" if repeat >= 0 else f"{case.name}: warming up")
        for name in case.contenders:
            seconds, _ = _start(starts[name])
            if repeat >= 0:
                samples.append(Sample(name, repeat, wall=seconds))
    return samples


def _run(name: str, command: list[str], folder: Path) -> tuple[float, float]:
    """Return the seconds until the first step, and until the end."""
    stamp, log = folder / "stamp", folder / "output.log"
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment(),
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        code = process.wait(TIMEOUT)
        ended = time.monotonic()
    except subprocess.TimeoutExpired:
        raise ContenderFailed(f"{name} does not end. The end of its output:\n{tail(log)}") from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if code or not stamp.exists():
        raise ContenderFailed(f"{name} ended with exit code {code}. The end of its output:\n{tail(log)}")
    return float(stamp.read_text()) - started, ended - started


def _start(name: str) -> tuple[float, float]:
    """Start a script or a command; return the seconds until its first step, and until its end."""
    with tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True) as folder:
        if name in _SCRIPTS:
            script = Path(folder, "train.py")
            script.write_text(_SCRIPTS[name].format(folder=folder, flags=_FLAGS, before=""))
            return _run(name, [sys.executable, str(script)], Path(folder))
        program, *arguments = _COMMANDS[name]
        text = _CONFIG.format(folder=folder)
        Path(folder, "config.yaml").write_text(text if "tune" in arguments else text.partition("tune:")[0])
        first = [sys.executable, program] if program == "-m" else [str(Path(sysconfig.get_path("scripts"), program))]
        return _run(name, [*first, *arguments, "--config", f"{folder}/config.yaml"], Path(folder))


def main() -> None:
    """Measure all, by turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", help="names, or parts of them, separated by commas")
    arguments = parser.parse_args()
    wanted = (arguments.only or "").split(",")
    names = [name for name in (*_SCRIPTS, *_COMMANDS) if name == UNIT or any(part in name for part in wanted)]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for repeat in range(-1, arguments.repeats):  # the first time reads Python's files from the disk
        for name in names:
            measured = _start(name)
            if repeat >= 0:
                times[name].append(measured)
    unit = statistics.median(first for first, _ in times[UNIT])
    print(f"{'':<48}{'first step':>20}{'ratio':>8}{'end':>8}   (seconds: median, min to max)")
    for name, rows in times.items():
        first = [row[0] for row in rows]
        middle, end = statistics.median(first), statistics.median(row[1] for row in rows)
        spread = f"{middle:.1f} ({min(first):.1f}-{max(first):.1f})"
        print(f"{name:<48}{spread:>20}{middle / unit:>8.2f}{end:>8.1f}")


if __name__ == "__main__":
    main()
