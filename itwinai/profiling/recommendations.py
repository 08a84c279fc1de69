"""What to do about the time of a training step, with the figures that say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from itwinai.profiling.step_timer import Phase, StepSplit

FEWEST = 20
"""Steps below which nothing is concluded: a single one that was disturbed would decide."""

HAND_OVER = 5e-4
"""Seconds that it takes the training process to get a batch from a worker of the DataLoader (measured: 0.3 to 0.5 ms
of its own time for two small tensors). Batches that are read faster than this come no sooner from workers."""


SLOW_START = 0.05
"""Seconds until the first batch of an epoch below which nobody need know of it."""


@dataclass(frozen=True)
class Setting:
    """What the advice depends on beside the times.

    Attributes:
        loader_workers: ``num_workers`` of the training DataLoader; None if there is no such loader.
        keeps_workers: its ``persistent_workers``.
        pins_memory: whether that loader pins its memory.
        cores: that each training worker of this node has, its share of those that it has in common with others.
        on_gpu: whether the model is on a GPU.
        log_every_n_steps: of the trainer.
        batch_size: samples in a batch of one worker, if known.
        accumulate_grad_batches: batches per optimizer step.
        later_epochs: epochs after the first one.
        epoch_start: mean seconds in those until the first batch was there.
    """

    loader_workers: int | None = None
    keeps_workers: bool = False
    pins_memory: bool = False
    cores: int = 8
    on_gpu: bool = False
    log_every_n_steps: int = 50
    batch_size: int | None = None
    accumulate_grad_batches: int = 1
    later_epochs: int = 0
    epoch_start: float = 0.0


def too_few(splits: Sequence[StepSplit]) -> str:
    """Return why no advice can be given, or an empty text if it can."""
    least = min((split.steps for split in splits), default=0)
    steps = "1 step was" if least == 1 else f"{least} steps were"
    return "" if least >= FEWEST else f"what could be better: only {steps} timed; it takes {FEWEST} for any advice"


def advise(splits: Sequence[StepSplit], setting: Setting) -> list[str]:
    """Return what to do next, what matters most first; nothing if nothing stands out, or too few steps were timed.

    Args:
        splits: the times of all workers, by rank.
        setting: what else matters.
    """
    if too_few(splits):
        return []
    found = [
        advice
        for advice in (
            _data(splits, setting),
            _epoch_start(splits, setting),
            _slowest(splits),
            _communication(splits, setting),
            _transfer(splits, setting),
            _overhead(splits, setting),
            _between(splits),
            _small_steps(splits, setting),
        )
        if advice is not None
    ]
    return [text for _, text in sorted(found, key=lambda item: -item[0])]


Advice = tuple[float, str] | None


def _mean_share(splits: Sequence[StepSplit], *phases: Phase) -> float:
    return sum(sum(split.share(phase) for phase in phases) for split in splits) / len(splits)


def _data(splits: Sequence[StepSplit], setting: Setting) -> Advice:
    slowest = max(splits, key=lambda split: split.share(Phase.DATA))
    share = slowest.share(Phase.DATA)
    if share < 0.15:
        return None
    says = f"{share:.0%} of the step waits for data"
    workers = setting.loader_workers
    if workers is None:
        return share, f"{says}: the loader is not a DataLoader; let it read ahead in the background."
    if workers == 0:
        return share, says + _without_workers(slowest.phases.get(Phase.DATA, 0.0), setting)
    if 2 * workers <= _room(setting):
        return share, f"{says}, with num_workers={workers}: try num_workers={2 * workers}, or {_CHEAPER}."
    return share, (
        f"{says}, with num_workers={workers}: {_cores(setting)} for each training worker are too few for more of them; "
        f"{_CHEAPER}."
    )


_CHEAPER = "make reading a sample cheaper (decode and transform beforehand, a faster file format, the node's own disk)"


def _without_workers(wait: float, setting: Setting) -> str:
    """Return what to do where the training process reads its batches itself, and waits so many seconds for each."""
    if wait < HAND_OVER:
        return (
            f", but that is only {milliseconds(wait)}: workers of the DataLoader would take longer to hand a batch "
            "over. Make larger batches, or cut them from tensors in memory in one piece."
        )
    says = ": num_workers is 0, so each batch is read while the training waits."
    room = _room(setting)
    if room:
        return f"{says} Try DataLoader(num_workers={min(room, 8)}, persistent_workers=True)."
    return (
        f"{says} With {_cores(setting)} for each training worker there is none left for workers of the DataLoader: ask "
        f"for more, or {_CHEAPER}."
    )


def _room(setting: Setting) -> int:
    """Return how many workers of the DataLoader the cores of each training worker have room for.

    One core is the training's own. A single other one is enough beside a GPU; on the CPU the training computes on both.
    """
    room = setting.cores - 1
    return room if setting.on_gpu or room > 1 else 0


def _cores(setting: Setting) -> str:
    return f"{setting.cores} core{'s' * (setting.cores > 1)}"


def _epoch_start(splits: Sequence[StepSplit], setting: Setting) -> Advice:
    workers = setting.loader_workers
    if not workers or setting.keeps_workers or not setting.later_epochs:
        return None
    spent = setting.later_epochs * setting.epoch_start
    share = spent / (spent + splits[0].steps * (splits[0].step + splits[0].between))
    if share < 0.03 or setting.epoch_start < SLOW_START:
        return None
    return share, (
        f"Workers of the DataLoader start anew in each epoch (num_workers={workers}): "
        f"{milliseconds(setting.epoch_start)} until the first batch, {milliseconds(spent)} in all "
        f"{setting.later_epochs} epochs after the first. With DataLoader(persistent_workers=True) they start once."
    )


def _slowest(splits: Sequence[StepSplit]) -> Advice:
    if len(splits) < 2 or any(split.communication is None for split in splits):
        return None
    work = [own_work(split) for split in splits]
    rank, slowest = max(enumerate(work), key=lambda item: item[1])
    typical = median(work[:rank] + work[rank + 1 :])
    if typical <= 0 or slowest < 1.15 * typical or slowest - typical < 0.05 * splits[rank].step:
        return None
    return (slowest - typical) / splits[rank].step, (
        f"Rank {rank} is the slowest: {milliseconds(slowest)} of own work per step, and the others "
        f"{milliseconds(typical)} (median), so that they wait for it. Look for an uneven "
        "share of data, a slower device, or other processes on its node."
    )


def _communication(splits: Sequence[StepSplit], setting: Setting) -> Advice:
    # That of the worker that waits least: the others wait for it, and not for the network.
    share = min(split.share(Phase.COMMUNICATION) for split in splits)
    if len(splits) < 2 or share < 0.25:
        return None
    overlap = splits[0].overlap
    beside = f" ({overlap:.0%} of the exchange takes place beside the computation)" if overlap else ""
    accumulated = setting.accumulate_grad_batches
    return share, (
        f"Waiting for other workers takes at least {share:.0%} of the step on every worker{beside}. Do more work "
        f"per exchange: a larger batch per worker, or accumulate_grad_batches={2 * accumulated} (now {accumulated}); "
        "or send less: "
        "gradient_compression='bf16' under ddp, compression='fp16' under horovod. Or use fewer workers."
    )


def _transfer(splits: Sequence[StepSplit], setting: Setting) -> Advice:
    share = _mean_share(splits, Phase.TRANSFER)
    if share < 0.1:
        return None
    if setting.on_gpu and not setting.pins_memory:
        return share, f"{share:.0%} of the step copies batches to the GPU: try DataLoader(pin_memory=True)."
    return share, (
        f"{share:.0%} of the step brings batches to the device: look at transfer_batch_to_device and "
        "on_after_batch_transfer."
    )


def _overhead(splits: Sequence[StepSplit], setting: Setting) -> Advice:
    hooks, logging = _mean_share(splits, Phase.CALLBACKS), _mean_share(splits, Phase.LOGGING)
    if logging > 0.1:
        return logging, (
            f"{logging:.0%} of the step hands metrics to the loggers: log_every_n_steps is "
            f"{setting.log_every_n_steps}; raise it, or use a logger that writes in the background (--logger mlflow)."
        )
    if hooks > 0.1:
        return hooks, f"{hooks:.0%} of the step is spent in hooks of callbacks and of the module."
    return None


def _between(splits: Sequence[StepSplit]) -> Advice:
    between = sum(split.between for split in splits) / len(splits)
    share = between / (between + sum(split.step for split in splits) / len(splits))
    if share < 0.25:
        return None
    return share, (
        f"{share:.0%} of the time within epochs is spent between steps, in validation and checkpoints: validate less "
        "often (check_val_every_n_epoch, val_check_interval, limit_val_batches), or save less often."
    )


def _small_steps(splits: Sequence[StepSplit], setting: Setting) -> Advice:
    step = splits[0].step
    if step > 2e-3 or setting.batch_size is None or splits[0].share(Phase.DATA) > 0.5:
        return None
    return 0.01, (
        f"A step takes only {milliseconds(step)}, most of it the fixed cost of calling operators: a batch size above "
        f"{setting.batch_size} trains more samples per second, if the model's accuracy allows."
    )


def own_work(split: StepSplit) -> float:
    """Return the seconds of a step in which a worker does not wait for others."""
    return split.step * (1 - split.share(Phase.COMMUNICATION))


def milliseconds(seconds: float) -> str:
    """Return a time with three digits, in ms; in us below 0.1 ms, in s above 1 s."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e6:.3g} us" if seconds < 1e-4 else f"{seconds * 1e3:.3g} ms"
