"""Train the same network in four ways: ``python -m tests.performance.contenders CASE CONTENDER --socket PATH ...``.

Each contender has processes of its own: what one of them imports, patches or leaves to the garbage collector does not
change the speed of another.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.performance.cases import ACCELERATE, CASES, COMPILED, ITWINAI, LIGHTNING, RAW, WATCHING, Case
from tests.performance.gate import Gate
from tests.performance.model import Batches, make_loader, make_network, make_optimizer, mse_loss

if TYPE_CHECKING:  # raw PyTorch shall not pay for what it does not use
    import lightning as L


@dataclass(frozen=True)
class Run:
    """What a contender has to do.

    Attributes:
        case: the row of the table.
        batches: the data.
        epochs: number of epochs.
        folder: where whatever is written goes.
    """

    case: Case
    batches: Batches
    epochs: int
    folder: str


def run_raw(run: Run) -> None:
    """Train as in PyTorch's tutorials, without logging anything: the yardstick of all cases."""
    network: torch.nn.Module = make_network(run.case.model)
    if run.case.workers > 1:
        dist.init_process_group("gloo")
        network = DistributedDataParallel(network)
    optimizer = make_optimizer(network)
    loader = make_loader(run.batches, run.case.workers)
    if run.case.evaluate:
        network.eval()
        with torch.no_grad():
            for x, y in loader:
                mse_loss(network(x), y)
        return
    for x, y in loader:
        optimizer.zero_grad()
        loss = mse_loss(network(x), y)
        loss.backward()
        optimizer.step()
    if dist.is_initialized():
        dist.destroy_process_group()


def run_accelerate(run: Run) -> None:
    """Train as in accelerate's tutorials, with what its users write by hand where the trainers have `self.log`."""
    from accelerate import Accelerator

    case = run.case
    with_board = case.defaults and importlib.util.find_spec("tensorboard") is not None
    accelerator = Accelerator(cpu=True, log_with="tensorboard" if with_board else None, project_dir=run.folder)
    accelerator.init_trackers("benchmark")
    network = make_network(case.model)
    network, optimizer = accelerator.prepare(network, make_optimizer(network))
    # Accelerate cannot deal out a loader with batch_size=None, so several workers get the raw loop's loader.
    loader = make_loader(run.batches, case.workers)
    if case.workers == 1:
        loader = accelerator.prepare(loader)
    if case.evaluate:
        network.eval()
        with torch.no_grad():
            for x, y in loader:
                mse_loss(network(x), y)
        return
    progress: Any = loader
    if case.defaults:
        from accelerate.utils import tqdm

        progress = tqdm(loader, mininterval=0, miniters=1)  # lightning's bar moves at every step
    total, count = torch.zeros(()), 0
    for step, (x, y) in enumerate(progress):
        optimizer.zero_grad()
        loss = mse_loss(network(x), y)
        accelerator.backward(loss)
        optimizer.step()
        if case.log:
            total += loss.detach() * len(x)
            count += len(x)
        if case.defaults:
            value = loss.item()
            progress.set_postfix(loss=value, refresh=False)
            if (step + 1) % 50 == 0:  # as often as lightning's loggers write by default
                accelerator.log({"loss": value}, step=step)
    if case.log:
        accelerator.log({"epoch_loss": float(total / max(count, 1))}, step=len(loader))
    accelerator.end_training()


def run_lightning(run: Run) -> None:
    """Train with stock lightning."""
    import lightning as L

    _run_trainer(run, L.Trainer)


def run_itwinai(run: Run) -> None:
    """Train with ItwinaiTrainer."""
    from itwinai import ItwinaiTrainer

    _run_trainer(run, ItwinaiTrainer)


def run_compiled(run: Run) -> None:
    """Train with ItwinaiTrainer, each step as one graph."""
    from itwinai import ItwinaiTrainer

    _run_trainer(run, partial(ItwinaiTrainer, compile_step=True))


def _run_trainer(run: Run, trainer_class: Callable[..., L.Trainer]) -> None:
    from lightning.pytorch.callbacks import RichProgressBar
    from lightning.pytorch.trainer.connectors import callback_connector

    from tests.performance import modules

    case = run.case
    # Lightning takes another progress bar when `rich` happens to be installed, for instance by a linter. A plain
    # installation has tqdm's, which is the one measured.
    callback_connector._RICH_AVAILABLE = False
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": case.workers,
        "max_epochs": run.epochs,
        "default_root_dir": run.folder,
    }
    if case.workers > 1:
        options["strategy"] = "ddp"
    if not case.defaults:
        options |= {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
    trainer = trainer_class(**options)
    assert not isinstance(trainer.progress_bar_callback, RichProgressBar)
    module: L.LightningModule
    if case.quantity == "collectives of an epoch":
        module = modules.MeteredRegression(case.metrics)
    else:
        module = modules.LoggedRegression(progress_bar=case.defaults) if case.log else modules.Regression(case.model)
    loader = make_loader(run.batches)
    if case.evaluate:
        trainer.validate(module, loader, verbose=False)
    else:
        trainer.fit(module, loader)


RUNNERS = {
    RAW: run_raw,
    ACCELERATE: run_accelerate,
    LIGHTNING: run_lightning,
    ITWINAI: run_itwinai,
    COMPILED: run_compiled,
}


def main() -> None:
    """Run one contender, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    cases = {**CASES, WATCHING.name: WATCHING}
    parser.add_argument("case", choices=cases)
    parser.add_argument("contender", choices={*RUNNERS, *WATCHING.contenders})
    parser.add_argument("--socket", required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--chunks", type=int, required=True)
    given = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    case = cases[given.case]
    if case.quantity == "collectives of an epoch":
        # Epochs as chunks: two more, one to warm up and one whose first batch ends the last chunk.
        gate = Gate(given.socket, given.steps, given.chunks, count_collectives=True)
        run_length, epochs = given.steps, given.chunks + 2
    else:
        gate = Gate(given.socket, given.steps, given.chunks)
        run_length, epochs = gate.items, 1
    run = Run(case, Batches(run_length * case.workers, gate, case.model), epochs, given.folder)
    if case is WATCHING:
        from tests.performance.watching import run_watched

        run_watched(run, given.contender)
    else:
        RUNNERS[given.contender](run)


if __name__ == "__main__":
    main()
