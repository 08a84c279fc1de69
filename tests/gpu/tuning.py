"""Do `itwinai tune` with fractions of a GPU, and `itwinai benchmark` on one, run as their users type them?"""

from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.gpu.check import Bench, Check, NotInstalled

ROOT = str(Path(__file__).parent.parent.parent)
CONFIG = """
model:
  class_path: tests.gpu.models.Regression
data:
  class_path: tests.gpu.models.Points
trainer:
  accelerator: {accelerator}
  max_epochs: 2
  logger: false
  enable_progress_bar: false
"""
SEARCH = """
tune:
  metric: train_loss
  num_samples: 2
  search: random
  resources_per_worker: {CPU: 1, GPU: 0.5}
  space:
    model.lr: {loguniform: [1.0e-3, 1.0e-1]}
"""


def _itwinai(bench: Bench, config: str, *arguments: str) -> str:
    """Run a command, and return what it has printed."""
    (bench.folder / "config.yaml").write_text(config.replace("{accelerator}", bench.accelerator))
    command = [sys.executable, "-m", "itwinai.cli.main", arguments[0], "-c", "config.yaml", *arguments[1:]]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        command, cwd=bench.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(done.stdout)
    bench.expect(f"exit code of itwinai {arguments[0]}", done.returncode, equal=0)
    return done.stdout


def tune(bench: Bench, wanted_at_once: int = 2) -> None:
    """Search with two trials that share the GPU; dry, train what it would and look at its plan."""
    from itwinai.tune.resource_plan import make_plan
    from itwinai.tune.resources import NodeResources, TrialResources

    node = NodeResources("one", "here", {"CPU": 8, "GPU": 1})
    plan = make_plan(TrialResources(per_worker={"CPU": 1, "GPU": 0.5}), [node], 2)
    bench.expect("trials at once on one GPU", plan.at_once, equal=wanted_at_once)
    if bench.dry:
        _fit(bench)
        return
    if importlib.util.find_spec("ray") is None:
        raise NotInstalled("ray")
    told = _itwinai(bench, CONFIG + SEARCH, "tune")
    bench.expect("train_loss in what it told", str("train_loss" in told), equal="True")


def benchmark(bench: Bench) -> None:
    """Benchmark DDP on one worker, and look at the page; dry, train what it would and look at its cells."""
    from itwinai.benchmark.settings import Settings, cells_of

    cells = cells_of(Settings(strategies=("ddp",), workers=(1,)))
    bench.expect("cells", ", ".join(cell.strategy for cell in cells), equal="single, ddp")
    if bench.dry:
        _fit(bench)
        return
    _itwinai(bench, CONFIG, "benchmark", "--strategies", "ddp", "--workers", "1", "--seconds", "2", "--folder", "out")
    rows = list(csv.DictReader((bench.folder / "out" / "table.csv").open()))
    bench.expect("rows of the table", len(rows), at_least=1)
    pages = list((bench.folder / "out").glob("*.html"))
    bench.expect("pages", len(pages), at_least=1)
    named = torch.cuda.get_device_name() in pages[0].read_text()
    bench.expect("the GPU on the page", str(named), equal="True")


def _fit(bench: Bench) -> None:
    """Run `itwinai fit` with the config of both in this process: new ones import for seconds."""
    from itwinai.cli.main import main

    (bench.folder / "config.yaml").write_text(CONFIG.replace("{accelerator}", bench.accelerator))
    code = main(["fit", "-c", "config.yaml", "--trainer.default_root_dir", str(bench.folder)])
    bench.expect("exit code of itwinai fit", code, equal=0)


CHECKS = (
    Check("benchmark", "tuning", "itwinai benchmark on one GPU", benchmark, 32, 120),
    Check("tune", "tuning", "itwinai tune with fractions of a GPU", tune, 33, 90),
)
