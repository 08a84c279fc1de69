"""The training run that all checks share: two short epochs, in one process or in a worker of a group."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from torch.utils.data import DataLoader

from itwinai.checks.recorder import Notes, Recorder, Saver, logged_keys_to
from itwinai.checks.silent_logger import SilentLogger
from itwinai.checks.subject import Built, Subject, divisible, numeric_options, resized
from itwinai.compat import noise as compat_noise
from itwinai.errors import ConfigurationError
from itwinai.launchers.environment import PlacedEnvironment, RankInfo
from itwinai.trainer import ItwinaiTrainer

EPOCHS = 2
VALIDATION_BATCHES = 3
RANDOM_POINTS = 5
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Run:
    """What one run is to do.

    Attributes:
        root: folder for what hooks of the user write.
        strategy: its name; ``auto`` in one process.
        workers: number of workers.
        resume: checkpoint to continue from.
        save_to: folder for checkpoints at chosen places.
        notes: whether to note batches, gradients and the module's state.
        keys_to: file for the logged keys; ``{rank}`` in it stands for the rank.
        evaluate: whether to evaluate and predict afterwards, with several batch sizes in one process.
        weights: of the module for evaluation, instead of those it has trained.
        perturb: whether to change the initial weights by as much as rounding does, to see what becomes of it.
    """

    root: str
    strategy: str = "auto"
    workers: int = 1
    resume: str | None = None
    save_to: Path | None = None
    notes: bool = False
    keys_to: str = ""
    evaluate: bool = False
    weights: Weights | None = None
    perturb: bool = False


@dataclass
class Evaluated:
    """Metrics and predictions with one batch size.

    Attributes:
        how: batch size and number of workers, as people read it.
        metrics: by key; empty if there is nothing to evaluate.
        predictions: what predict returned on this rank.
    """

    how: str
    metrics: dict[str, float] = field(default_factory=dict)
    predictions: list[Any] = field(default_factory=list)


@dataclass
class Trained:
    """What a run has left.

    Attributes:
        weights: of the module, on the CPU.
        steps: of the optimizers.
        metrics: that the fit has logged.
        notes: see `Notes`.
        saved: where checkpoints were saved, by their names.
        evaluated: one for each batch size.
        not_evaluated: why metrics or predictions are missing: reasons by ``validate`` and ``predict``.
        predicted_samples: number of samples of the prediction.
    """

    weights: Weights
    steps: int
    metrics: dict[str, float]
    notes: Notes
    saved: dict[str, str] = field(default_factory=dict)
    evaluated: list[Evaluated] = field(default_factory=list)
    not_evaluated: dict[str, str] = field(default_factory=dict)
    predicted_samples: int = 0


def batches_per_epoch(options: Mapping[str, Any]) -> int:
    """Return the number of batches of an epoch: several windows of accumulated gradients, the last one not whole."""
    windows = int(options.get("accumulate_grad_batches") or 1)
    return 6 if windows == 1 else 3 * windows + 1


def train(subject: Subject, run: Run, rank: RankInfo | None = None) -> Trained:
    """Make the run in this process.

    Args:
        subject: what trains.
        run: what to do.
        rank: the ranks of this process, if it is a worker of a group.
    """
    with quiet(), ExitStack() as contexts:
        built = subject.build()
        for stage in filter(built.has_loader, ("train", "val")):
            contexts.enter_context(built.changed_loader(stage, divisible))
        if run.perturb:
            _perturb(built.module)
        notes = Notes()
        saver = None
        callbacks: list[Any] = [*built.callbacks]
        if run.notes:
            callbacks.append(Recorder(notes))
        if run.save_to is not None:
            saver = Saver(run.save_to, RANDOM_POINTS, subject.seed, notes)
            callbacks.append(saver)
        if run.keys_to:
            path = Path(run.keys_to.format(rank=0 if rank is None else rank.rank))
            contexts.enter_context(logged_keys_to(path))
        trainer = make_trainer(subject, run, callbacks, rank)
        trainer.fit(**built.arguments("fit"), ckpt_path=run.resume, weights_only=None if run.resume is None else False)
        trained = Trained(
            weights={name: value.detach().cpu().clone() for name, value in built.module.state_dict().items()},
            steps=trainer.global_step,
            metrics={name: float(value) for name, value in trainer.callback_metrics.items()},
            notes=notes,
            saved={} if saver is None else saver.saved,
        )
        if run.evaluate:
            if run.weights is not None:
                built.module.load_state_dict(run.weights)
            _evaluate(subject, built, run, rank, trained)
    return trained


@torch.no_grad()
def _perturb(module: torch.nn.Module) -> None:
    """Change each weight by about half the distance to the next number, up or down."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.is_floating_point():
            signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
            parameter.mul_(1 + signs * torch.finfo(parameter.dtype).eps)


def make_trainer(
    subject: Subject, run: Run, callbacks: list[Any], rank: RankInfo | None, **limits: Any
) -> ItwinaiTrainer:
    """Return a trainer that writes nothing, with those of the user's options that change numbers."""
    plugins: list[Any] = [] if rank is None else [PlacedEnvironment(rank)]
    given: dict[str, Any] = {
        "max_epochs": EPOCHS,
        "limit_train_batches": batches_per_epoch(subject.options),
        "limit_val_batches": VALIDATION_BATCHES,
        "num_sanity_val_steps": 0,
        **numeric_options(subject.options),
        **limits,
    }
    return ItwinaiTrainer(
        strategy=run.strategy,
        devices=run.workers,
        accelerator="cpu",
        callbacks=callbacks,
        plugins=plugins,
        split_batches=given.get("use_distributed_sampler", True),
        cpu_threads=1,
        log_every_n_steps=1,
        logger=SilentLogger(run.root),
        default_root_dir=run.root,
        enable_checkpointing=any(isinstance(one, Checkpoint) for one in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **given,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Let lightning and Python say nothing but errors."""
    compat_noise.silence_known_noise()
    for name in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _evaluate(subject: Subject, built: Built, run: Run, rank: RankInfo | None, trained: Trained) -> None:
    """Evaluate and predict with the user's batch size; in one process also with others."""
    from lightning.pytorch import LightningModule
    from lightning.pytorch.utilities.model_helpers import is_overridden

    for method, stage, step in (("validate", "val", "validation_step"), ("predict", "predict", "predict_step")):
        source = stage if built.has_loader(stage) else "val"
        name = type(built.module).__name__
        if not is_overridden(step, built.module, LightningModule):
            trained.not_evaluated[method] = f"{name} has no {step}"
        elif not built.has_loader(source):
            trained.not_evaluated[method] = f"there is no {source}_dataloader"
        else:
            try:
                _evaluate_stage(subject, built, run, rank, trained, method, stage, source)
            except _NotResizableError as error:
                trained.not_evaluated[method] = str(error)


class _NotResizableError(Exception):
    pass


def _evaluate_stage(
    subject: Subject,
    built: Built,
    run: Run,
    rank: RankInfo | None,
    trained: Trained,
    method: str,
    stage: str,
    source: str,
) -> None:
    first: list[int] = []

    def change(loader: Any, factor: float) -> DataLoader:
        own = getattr(loader, "batch_size", None) or 1
        # The last batch is smaller than the others, with each of these sizes: means of means show.
        samples = 2 * own + max(own // 3, 1)
        try:
            size = max(1, int(own * factor))
            changed = resized(loader, size + size % run.workers, samples)
        except ConfigurationError as error:
            raise _NotResizableError(str(error)) from None
        first[:] = [own, len(changed.dataset)]  # type: ignore[arg-type]
        return changed

    ways = ((1.0, ""), (1.0, ", again"), (0.5, ""), (1.5, "")) if run.workers == 1 else ((1.0, ""),)
    for factor, again in ways:
        with built.changed_loader(stage, partial(change, factor=factor), source):
            trainer = make_trainer(subject, run, [*built.callbacks], rank, limit_val_batches=1.0)
            quietly = {} if method == "predict" else {"verbose": False}
            result = getattr(trainer, method)(**built.arguments(method), **quietly)
        how = f"batches of {max(1, int(first[0] * factor))}" if run.workers == 1 else f"{run.workers} workers"
        evaluated = Evaluated(f"{how}{again}")
        if method == "predict":
            evaluated.predictions = result
            trained.predicted_samples = first[1]
        else:
            evaluated.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        trained.evaluated.append(evaluated)


def tensors_of(weights: Weights) -> Tensor:
    """Return all weights as one vector, in the order of their names."""
    return torch.cat([weights[name].double().flatten() for name in sorted(weights)] or [torch.zeros(0)])
