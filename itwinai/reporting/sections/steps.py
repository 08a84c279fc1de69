"""The report of a profile: where the time of a training step goes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itwinai.profiling.step_timer import MEANING, Phase, StepSplit
from itwinai.reporting.formatting import bytes_text, percent_text, time_text
from itwinai.reporting.plotting import COLORS, WIDE, legend_above, new_axes, picture_of
from itwinai.reporting.sections import Section, Table
from itwinai.reporting.sections.step_recommendations import SLOW_START, Setting, advise, own_work, too_few

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from itwinai.profiling.pyspy import StackSampler
    from itwinai.profiling.torch_profiler import OperatorProfile

NAMES = {
    Phase.DATA: "data wait",
    Phase.TRANSFER: "transfer",
    Phase.FORWARD: "forward",
    Phase.BACKWARD: "backward",
    Phase.COMMUNICATION: "other workers",
    Phase.OPTIMIZER: "optimizer",
    Phase.CALLBACKS: "callbacks",
    Phase.LOGGING: "loggers",
    Phase.MANUAL: "training_step",
}

SHOWN_RANKS = 32
"""Most workers that a picture shows; beyond, those with most and least own work."""

SHOWN_OPERATORS = 15


@dataclass(frozen=True)
class Profile:
    """What a `ProfilingCallback` has found.

    Attributes:
        splits: the times of each worker, by rank; empty where the loop has not timed its steps.
        peak_memory: bytes, by rank; None where that is not known.
        setting: what else the advice depends on.
        folder: where the files are.
        recorded: the operators of rank 0, if they were recorded.
        stacks: the Python functions of rank 0, if they were looked at.
    """

    splits: Sequence[StepSplit]
    peak_memory: Sequence[int | None]
    setting: Setting
    folder: Path
    recorded: OperatorProfile | None = None
    stacks: StackSampler | None = None


def sections_of(profile: Profile) -> list[Section]:
    """Return the sections of a profile."""
    sections = [_steps(profile)]
    if len(profile.splits) > 1:
        sections.append(_workers(profile.splits))
    if profile.recorded is not None:
        known = len(profile.peak_memory) < 2 or any(split.communication is not None for split in profile.splits)
        sections.append(_operators(profile.recorded, exchange_known=known))
    if profile.stacks is not None:
        sections.append(_functions(profile.stacks))
    return sections


def write_files(profile: Profile) -> None:
    """Write the picture of the split, and the tables of workers and operators, beside the traces."""
    profile.folder.mkdir(parents=True, exist_ok=True)
    if profile.splits:
        _bars(profile.splits).savefig(profile.folder / "steps.png", dpi=150)
        rows: list[dict[str, Any]] = [
            {"rank": rank, "step_ms": split.step * 1e3}
            | {f"{NAMES[phase].replace(' ', '_')}_ms": split.phases.get(phase, 0.0) * 1e3 for phase in Phase}
            for rank, split in enumerate(profile.splits)
        ]
        _write_table(profile.folder / "workers.csv", rows)
    if profile.recorded is not None and profile.recorded.operators:
        _write_table(profile.folder / "operators.csv", [asdict(one) for one in profile.recorded.operators])


def files_of(profile: Profile) -> list[Path]:
    """Return the files of a profile, on rank 0: pictures and tables, its own traces, its flame graph."""
    names = ("steps.png", "workers.csv", "operators.csv")
    found = [profile.folder / name for name in names]
    if profile.recorded is not None:
        found += profile.recorded.traces
    if profile.stacks is not None and profile.stacks.flame_graph is not None:
        found.append(profile.stacks.flame_graph)
    return [path for path in found if path.is_file()]


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _steps(profile: Profile) -> Section:
    splits = profile.splits
    if not splits:
        return Section(
            "Training step",
            missing=["its parts: the steps were run by Lightning's own loop, which has no clock"],
        )
    first = splits[0]
    whole = sum(first.phases.values()) + first.rest
    parts = sorted(first.phases.items(), key=lambda item: -item[1])
    facts = {
        "step": f"{time_text(first.step)} (median {time_text(first.p50)}, 95 % below {time_text(first.p95)}, "
        f"longest {time_text(first.longest)}; {first.steps} steps)",
        "of it": ", ".join(f"{NAMES[p]} {percent_text(t / whole)}" for p, t in parts if t / whole >= 0.01)
        + f" (rank 0, {first.split_steps} of the steps)",
    }
    setting = profile.setting
    if setting.later_epochs and setting.epoch_start >= SLOW_START:
        facts["epoch start"] = f"{time_text(setting.epoch_start)} until the first batch, in every epoch but the first"
    missing = [why] if (why := too_few(splits)) else []
    if len(splits) > 1:
        if first.communication is None:
            missing.append("the exchange of gradients: this strategy does not measure it; see the traces")
        elif first.overlap is not None:
            facts["exchange"] = (
                f"{time_text(first.communication)} per step, {percent_text(first.overlap)} of it behind computation"
            )
    known = [peak for peak in profile.peak_memory if peak is not None]
    if known:
        facts["peak memory"] = f"{bytes_text(max(known))} per worker"
    facts["files"] = str(profile.folder)
    rows = [
        (NAMES[phase], time_text(seconds), percent_text(seconds / whole), MEANING[phase]) for phase, seconds in parts
    ]
    rows.append(("loop", time_text(first.rest), percent_text(first.rest / whole), "between the phases"))
    table = Table(("part", "per step", "share", "what it is"), rows, "Rank 0")
    picture = picture_of("Time per training step, by worker", _bars(splits), wide=True)
    return Section("Training step", facts, [table], [picture], advise(splits, profile.setting), missing)


def _workers(splits: Sequence[StepSplit]) -> Section:
    work = [own_work(split) for split in splits]
    rank = max(range(len(work)), key=work.__getitem__)
    fastest = min(work)
    rows = [
        (str(r), time_text(s.step), time_text(w), percent_text(s.share(Phase.COMMUNICATION)), time_text(s.p95))
        for r, (s, w) in enumerate(zip(splits, work, strict=True))
    ]
    table = Table(("rank", "step", "own work", "waits", "95 % below"), rows, "Workers")
    more = f"{percent_text(work[rank] / fastest - 1)} more own work per step than the fastest" if fastest else ""
    return Section("Workers", {"slowest": f"rank {rank}, {time_text(work[rank])}: {more}"}, [table])


def _operators(recorded: OperatorProfile, exchange_known: bool) -> Section:
    operators, step_us = recorded.operators, recorded.step_us
    missing = [what for what in recorded.missing if not (exchange_known and "collective" in what)]
    if not operators or not step_us:
        return Section("Operators", missing=missing)
    on_device = any(operator.device_us for operator in operators)
    columns = ["operator", "calls per step", "CPU, itself", *(["GPU, itself"] if on_device else []), "share of step"]
    rows = []
    for operator in operators[:SHOWN_OPERATORS]:
        time = operator.device_us if on_device and operator.device_us else operator.cpu_us
        device = [time_text((operator.device_us or 0) / 1e6)] if on_device else []
        rows.append(
            [
                operator.name,
                f"{operator.calls:.4g}",
                time_text(operator.cpu_us / 1e6),
                *device,
                percent_text(time / step_us),
            ]
        )
    facts = {"most time": ", ".join(f"{row[0]} {row[-1]}" for row in rows[:4])}
    if recorded.traces:
        facts["traces"] = f"{recorded.traces[0].parent}/*.pt.trace.json.gz (Perfetto, TensorBoard)"
    if (exchange := recorded.communication) is not None and exchange.total_us:
        beside = exchange.overlapped_us / exchange.total_us
        facts["collectives"] = (
            f"{time_text(exchange.total_us / 1e6)} per step, {percent_text(beside)} of it behind computation"
        )
    title = f"Operators of rank 0, over {recorded.steps} steps of {time_text(step_us / 1e6)} each, as recorded"
    return Section("Operators", facts, [Table(columns, rows, title)], missing=missing)


def _functions(stacks: StackSampler) -> Section:
    rows = [
        (function.name, function.place, percent_text(function.self_share), percent_text(function.total_share))
        for function in stacks.functions
    ]
    facts = {"most time": ", ".join(f"{row[0]} {row[2]}" for row in rows[:3])} if rows else {}
    if stacks.flame_graph is not None:
        facts["flame graph"] = str(stacks.flame_graph)
    table = Table(("function", "where", "itself", "with what it calls"), rows, "Python functions of rank 0")
    return Section("Python functions", facts, [table] if rows else [], missing=stacks.missing)


def _bars(splits: Sequence[StepSplit]) -> Figure:
    """Draw one bar per worker, in the parts of its step."""
    ranks = list(range(len(splits)))
    if len(ranks) > SHOWN_RANKS:
        ranks.sort(key=lambda rank: own_work(splits[rank]))
        ranks = sorted(ranks[: SHOWN_RANKS // 2] + ranks[-SHOWN_RANKS // 2 :])
    figure, axes = new_axes(WIDE, 1.3 + 0.32 * len(ranks))
    phases = [phase for phase in Phase if any(splits[rank].phases.get(phase, 0) for rank in ranks)]
    left = [0.0] * len(ranks)
    for phase in phases:
        widths = [splits[rank].phases.get(phase, 0.0) * 1e3 for rank in ranks]
        axes.barh(
            [str(rank) for rank in ranks], widths, left=left, label=NAMES[phase], color=COLORS[phase % len(COLORS)]
        )
        left = [before + width for before, width in zip(left, widths, strict=True)]
    rest = [splits[rank].rest * 1e3 for rank in ranks]
    axes.barh([str(rank) for rank in ranks], rest, left=left, label="loop", color="#dddddd")
    axes.invert_yaxis()
    axes.set(xlabel="ms per step", ylabel="rank")
    legend_above(figure, columns=5)
    return figure
