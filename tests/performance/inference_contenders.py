"""Predict with one framework: ``python -m tests.performance.inference_contenders CONTENDER MODEL ...``.

Each contender is written as the framework's own documentation has it. The clock begins where the first batch is fetched
on any worker, and ends when all predictions are on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from tests.performance.inference_cases import (
    ACCELERATE,
    BATCH_SIZES,
    DISTINCT,
    ITWINAI,
    ITWINAI_WRITER,
    LIGHTNING,
    RAW,
    RAY_DATA,
)

if TYPE_CHECKING:  # none pays for what another one uses
    import lightning as L


class Recurrent(nn.Module):
    """An LSTM that gives one number for each series."""

    def __init__(self, inputs: int = 5, hidden: int = 64) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, series: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.lstm(series)[0][:, -1])
        return outputs


def make_network(model: str) -> nn.Module:
    """Return the network, with the weights that all have."""
    torch.manual_seed(0)
    if model == "lstm":
        return Recurrent().eval()
    return nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1)).eval()


def make_inputs(model: str) -> Tensor:
    """Return the samples, which are served again and again."""
    shape = (60, 5) if model == "lstm" else (32,)
    return torch.randn(DISTINCT, *shape, generator=torch.Generator().manual_seed(1))


class Samples(Dataset[Tensor]):
    """Samples in memory, served a batch at a time.

    Args:
        run: what is predicted.
    """

    def __init__(self, run: Run) -> None:
        self.inputs = make_inputs(run.model)
        self.run = run
        self.fetched = False

    def __len__(self) -> int:
        return self.run.samples

    def __getitems__(self, indices: list[int]) -> Tensor:
        if not self.fetched:
            self.fetched = True
            self.run.begin()
        return self.inputs[torch.tensor(indices) % DISTINCT]


@dataclass(frozen=True)
class Run:
    """What a contender has to do.

    Attributes:
        model: name of the model.
        workers: number of workers.
        samples: how many there are, a multiple of the workers' batches.
        folder: for predictions and times.
    """

    model: str
    workers: int
    samples: int
    folder: Path

    def loader(self, sampler: Callable[[Dataset], Any] | None = None) -> DataLoader:
        """Return the loader that every framework is given."""
        samples = Samples(self)
        return DataLoader(samples, BATCH_SIZES[self.model], sampler=sampler and sampler(samples), collate_fn=_as_it_is)

    def begin(self) -> None:
        """Note that a worker fetches its first batch, by a clock that all processes share."""
        path = self.folder / f"begin-{os.getpid()}.json"
        path.write_text(json.dumps([time.monotonic(), torch.get_num_threads()]))

    def end(self) -> None:
        """Note that all predictions of this process are on disk."""
        (self.folder / f"end-{os.getpid()}.json").write_text(json.dumps(time.monotonic()))


def _as_it_is(batch: Any) -> Any:
    return batch


def run_raw(run: Run) -> None:
    """Predict in a loop, each worker its part: the yardstick."""
    rank = int(os.environ.get("RANK", "0"))
    network = make_network(run.model)
    outputs = []
    with torch.inference_mode():
        for batch in run.loader(lambda samples: DistributedSampler(samples, run.workers, rank, shuffle=False)):
            outputs.append(network(batch))
    torch.save(torch.cat(outputs), run.folder / f"part-{rank}.pt")
    run.end()


def run_accelerate(run: Run) -> None:
    """Predict as in accelerate's examples, which gather the outputs of each batch."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    network, loader = accelerator.prepare(make_network(run.model), run.loader())
    outputs = []
    with torch.inference_mode():
        for batch in loader:
            outputs.append(accelerator.gather_for_metrics(network(batch)))
    if accelerator.is_main_process:
        torch.save(torch.cat(outputs), run.folder / "predictions.pt")
        run.end()
    accelerator.end_training()


def run_ray_data(run: Run) -> None:
    """Predict by Ray Data, in a pool of actors."""
    import logging

    import ray
    import ray.data

    # Each actor keeps a CPU, as Ray counts them, and reading needs one more.
    num_cpus = max(os.cpu_count() or 1, run.workers + 1)
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    predicted = ray.data.range(run.samples).map_batches(
        Predicting,
        fn_constructor_args=(run,),
        batch_size=BATCH_SIZES[run.model],
        compute=ray.data.ActorPoolStrategy(size=run.workers),
    )
    parts = [torch.from_numpy(batch["prediction"]) for batch in predicted.iter_batches(batch_size=65536)]
    torch.save(torch.cat(parts), run.folder / "predictions.pt")
    run.end()
    ray.shutdown()


class Predicting:
    """What an actor of Ray Data does with each batch."""

    def __init__(self, run: Run) -> None:
        torch.set_num_threads(1)
        self.samples = Samples(run)
        self.network = make_network(run.model)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        with torch.inference_mode():
            return {"prediction": self.network(self.samples.__getitems__(batch["id"])).numpy()}


def run_lightning(run: Run) -> None:
    """Predict by stock lightning, and gather by hand: it leaves each worker with its own predictions."""
    import lightning as L
    import torch.distributed as dist

    trainer, outputs = _predicted(run, L.Trainer)
    own = torch.cat(outputs)
    parts = [torch.empty_like(own) for _ in range(run.workers)]
    if run.workers > 1:
        dist.all_gather(parts, own)
    else:
        parts = [own]
    if trainer.is_global_zero:
        torch.save(torch.stack(parts, dim=1).flatten(0, 1), run.folder / "predictions.pt")  # sample by sample
        run.end()


def run_itwinai(run: Run) -> None:
    """Predict by ItwinaiTrainer, which returns the predictions in their order."""
    from itwinai import ItwinaiTrainer

    _, outputs = _predicted(run, ItwinaiTrainer)
    torch.save(torch.cat(outputs), run.folder / "predictions.pt")
    run.end()


def run_itwinai_writer(run: Run) -> None:
    """Predict by ItwinaiTrainer, which writes Parquet."""
    from itwinai import ItwinaiTrainer
    from itwinai.callbacks import PredictionWriter

    _predicted(run, ItwinaiTrainer, callbacks=PredictionWriter(run.folder / "predictions.parquet"))
    run.end()


def _predicted(run: Run, trainer_class: Callable[..., L.Trainer], **options: Any) -> tuple[L.Trainer, Any]:
    from tests.performance.inference_module import Predicted

    trainer = trainer_class(
        strategy="ddp" if run.workers > 1 else "auto",
        accelerator="cpu",
        devices=run.workers,
        default_root_dir=run.folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    return trainer, trainer.predict(Predicted(make_network(run.model)), run.loader())


RUNNERS = {
    RAW: run_raw,
    LIGHTNING: run_lightning,
    ACCELERATE: run_accelerate,
    RAY_DATA: run_ray_data,
    ITWINAI: run_itwinai,
    ITWINAI_WRITER: run_itwinai_writer,
}


def main() -> None:
    """Run one contender, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=RUNNERS)
    parser.add_argument("model", choices=BATCH_SIZES)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    RUNNERS[given.contender](Run(given.model, given.workers, given.samples, given.folder))


if __name__ == "__main__":
    # Classes that travel to other processes are found there by the name of this module, not as `__main__`.
    from tests.performance import inference_contenders

    inference_contenders.main()
