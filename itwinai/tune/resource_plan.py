"""How many trials run at once on a cluster, what is left idle, and how long a search takes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

from itwinai.errors import ResourceError, did_you_mean
from itwinai.reporting.formatting import count_text, joined, span_text
from itwinai.tune.resources import UNIT, Amounts, NodeResources, TrialResources, amounts_text, resource_name

_WIDTH = 100
_LABELS = 12
_MINUTE = 60.0
_SHOWN = ("CPU", "GPU")


@dataclass(frozen=True)
class ResourcePlan:
    """How the trials of a search fit on a cluster.

    Attributes:
        resources: what each trial needs.
        nodes: what the cluster has.
        room: for each node, how many trials have room on it; of workers that may lie on different nodes, how many.
        at_once: number of trials that run at the same time.
        limit: what keeps it from being more, as in ``the CPUs are the limit``.
        idle: resources of the whole cluster that no trial uses while these run.
        num_trials: number of trials; None if they are started until the time is over.
        time_budget_s: seconds after which the search ends; None if it may take any time.
        seconds_per_trial: how long a trial takes, as far as is known; None if it is not.
    """

    resources: TrialResources
    nodes: Sequence[NodeResources]
    room: Sequence[int]
    at_once: int
    limit: str
    idle: Amounts
    num_trials: int | None
    time_budget_s: float | None
    seconds_per_trial: float | None

    @property
    def rounds(self) -> int | None:
        """How many trials follow each other in each place; None if there is no end of trials."""
        return None if self.num_trials is None else math.ceil(self.num_trials / self.at_once)

    def seconds(self) -> float | None:
        """Return how long the search takes; None if that is unknown."""
        ends = [] if self.time_budget_s is None else [self.time_budget_s]
        if self.rounds is not None and self.seconds_per_trial is not None:
            ends.append(self.rounds * self.seconds_per_trial)
        elif self.rounds is not None:
            return None
        return min(ends, default=None)

    def text(self) -> str:
        """Return the plan as a few lines, for people."""
        shown = {name: sum(node.amounts.get(name, 0) for node in self.nodes) for name in self._names()}
        lines = {
            "resources": f"{count_text(len(self.nodes), 'node')}, {amounts_text(shown)}",
            "each trial": self.resources.text(),
            "at once": f"{count_text(self.at_once, 'trial')}: {self.limit}",
            "idle": self._idle_text(),
            "time": self._time_text(),
        }
        return "\n".join(line for label, text in lines.items() for line in _wrapped(label, text))

    def _names(self) -> list[str]:
        """Return the resources that matter: those that trials use, and the CPUs and GPUs in any case."""
        return list(dict.fromkeys((*_SHOWN, *self.resources.per_worker)))

    def _idle_text(self) -> str:
        idle = {name: self.idle[name] for name in self._names() if self.idle.get(name, 0) > 0}
        text = amounts_text(idle)
        if (cpus := self._cpus_per_worker()) is not None:
            text += f"; each worker could have {cpus} CPUs"
        if "GPU" in idle and "GPU" not in self.resources.per_worker:
            text += "; no trial asks for GPUs"
        return text

    def _cpus_per_worker(self) -> int | None:
        """Return how many CPUs each worker could have without fewer concurrent trials, if that is more."""
        if self.at_once < _fitting(self.resources, self.nodes):
            return None  # rather more trials at once
        least = math.floor(self.resources.per_worker.get("CPU", 0)) + 1
        most = int(max(node.amounts.get("CPU", 0) for node in self.nodes))
        for cpus in range(most, least - 1, -1):
            more = replace(self.resources, per_worker={**self.resources.per_worker, "CPU": cpus})
            if _fitting(more, self.nodes) >= self.at_once:
                return cpus
        return None

    def _time_text(self) -> str:
        if self.num_trials is None:
            return self._endless_text()
        assert self.rounds is not None
        text = f"{count_text(self.num_trials, 'trial')} in {count_text(self.rounds, 'round')}"
        if self.seconds_per_trial is None:
            most = "" if self.time_budget_s is None else f", at most {span_text(self.time_budget_s)}"
            return f"{text}{most}; one minute per trial makes {span_text(self.rounds * _MINUTE)}"
        whole = self.rounds * self.seconds_per_trial
        text += f", about {span_text(whole)} at {span_text(self.seconds_per_trial)} per trial"
        if self.time_budget_s is None or whole <= self.time_budget_s:
            return text
        return f"{text}; {self._budget_text(self.time_budget_s, self.seconds_per_trial)}"

    def _budget_text(self, budget: float, per_trial: float) -> str:
        within = self._within(budget, per_trial)
        if within == 0:
            return f"the budget of {span_text(budget)} is over before the first has ended"
        return f"the budget of {span_text(budget)} is enough for about {within} of them"

    def _endless_text(self) -> str:
        pace = "one minute per trial makes" if self.seconds_per_trial is None else "about"
        per_trial = self.seconds_per_trial or _MINUTE
        each = "" if self.seconds_per_trial is None else f" at {span_text(per_trial)} each"
        if self.time_budget_s is None:
            return f"until it is stopped; {pace} {self.at_once * 3600 / per_trial:.3g} trials per hour{each}"
        within = self._within(self.time_budget_s, per_trial)
        return f"for {span_text(self.time_budget_s)}; {pace} {count_text(within, 'trial')}{each}"

    def _within(self, seconds: float, per_trial: float) -> int:
        """Return how many trials can be completed in a time."""
        return int(seconds / per_trial) * self.at_once


def make_plan(
    resources: TrialResources,
    nodes: Sequence[NodeResources],
    num_trials: int | None,
    max_concurrent: int | None = None,
    time_budget_s: float | None = None,
    seconds_per_trial: float | None = None,
) -> ResourcePlan:
    """Find out how many trials run at once, and what that means.

    Args:
        resources: what each trial needs.
        nodes: resources of the cluster, in use or not: use by others is not counted.
        num_trials: number of trials; None or -1 for no end.
        max_concurrent: most trials at once that are wanted; None or 0 for as many as have room.
        time_budget_s: seconds after which the search ends.
        seconds_per_trial: how long a trial takes, if that is known from an earlier search.

    Raises:
        ResourceError: not one trial has room.
    """
    number = None if num_trials is None or num_trials < 0 else num_trials
    fitting = _fitting(resources, nodes)
    if not fitting:
        raise ResourceError(_too_large(resources, nodes))
    at_once = min(fitting, max_concurrent or fitting, max(number or fitting, 1))
    total = resources.total
    names = dict.fromkeys(name for node in nodes for name in node.amounts)
    return ResourcePlan(
        resources=resources,
        nodes=tuple(nodes),
        room=tuple(node.room_for(_smallest_part(resources)) for node in nodes),
        at_once=at_once,
        limit=_limit(resources, nodes, fitting, number, max_concurrent or None),
        idle={name: _rounded(_sum_of(nodes, name) - at_once * total.get(name, 0)) for name in names},
        num_trials=number,
        time_budget_s=time_budget_s,
        seconds_per_trial=seconds_per_trial,
    )


def _fitting(resources: TrialResources, nodes: Sequence[NodeResources], without: str | None = None) -> int:
    """Return how many trials have room at once, also if there were any amount of one resource."""
    part = {name: amount for name, amount in _smallest_part(resources).items() if name != without}
    if not part:
        return UNIT  # nothing else limits them
    room = sum(node.room_for(part) for node in nodes)
    return room // resources.workers if resources.spread else room


def _smallest_part(resources: TrialResources) -> dict[str, float]:
    """Return what has to be on one node."""
    return dict(resources.per_worker) if resources.spread else resources.total


def _limit(
    resources: TrialResources,
    nodes: Sequence[NodeResources],
    fitting: int,
    num_trials: int | None,
    max_concurrent: int | None,
) -> str:
    at_once = min(fitting, max_concurrent or fitting, num_trials or fitting)
    if at_once < fitting:
        if max_concurrent == at_once:
            return f"max_concurrent is the limit, there is room for {fitting}"
        return f"that is all of them, there is room for {fitting}"
    if num_trials == at_once:
        return "that is all of them"
    limiting = [name for name in resources.per_worker if _fitting(resources, nodes, without=name) > fitting]
    limiting = limiting or list(resources.per_worker)  # several at the same time
    text = f"{joined([resource_name(name) for name in limiting])} {_are(limiting)} the limit"
    lost = _lost_between_nodes(resources, nodes, fitting)
    return f"{text}; the workers of a trial share one node, otherwise there would be room for {lost}" if lost else text


def _lost_between_nodes(resources: TrialResources, nodes: Sequence[NodeResources], fitting: int) -> int | None:
    """Return how many trials would fit if their workers could be on different nodes; None if not more."""
    if resources.spread or resources.workers == 1:
        return None
    spread = TrialResources(resources.workers, resources.per_worker, spread=True)
    possible = _fitting(spread, nodes)
    return possible if possible > fitting else None


def _too_large(resources: TrialResources, nodes: Sequence[NodeResources]) -> str:
    """Return why the cluster has no room for a trial, and what to do."""
    asked = f"The cluster has no room for a trial, which needs {resources.text()}"
    if resources.workers > 1:
        asked += f" ({amounts_text(resources.total, ' and ')} in all)"
    if not nodes:
        return "No trial has room: the cluster has no nodes. Start Ray, or check `ray status`."
    part = _smallest_part(resources)
    if missing := [name for name in part if not _sum_of(nodes, name)]:
        return f"{asked}. {_missing(missing[0], nodes)}"
    lacking = [name for name in part if round(_largest(nodes, name) * UNIT) < round(part[name] * UNIT)]
    if lacking:
        has = amounts_text({name: _largest(nodes, name) for name in lacking})
        asked += f". The largest of {count_text(len(nodes), 'node')} has {has}"
    elif not any(node.room_for(part) for node in nodes):
        asked += f". No node has all of that: {_each(nodes, part)}"
    else:
        have = amounts_text({name: _sum_of(nodes, name) for name in part}, " and ")
        room = sum(node.room_for(part) for node in nodes)
        asked += f". The whole cluster has {have}, with room for {count_text(room, 'worker')}"
    return f"{asked}. {_advice(resources, nodes)}"


def _advice(resources: TrialResources, nodes: Sequence[NodeResources]) -> str:
    ways = []
    if _lost_between_nodes(resources, nodes, 0):
        ways.append("strategy ray, whose workers can be on different nodes")
    if resources.workers > 1:
        ways.append("fewer workers per trial")
    if any(amount > 1 for amount in resources.per_worker.values()):
        ways.append("less per worker")
    return f"Use {joined([*ways, 'a larger cluster'], ' or ')}."


def _missing(name: str, nodes: Sequence[NodeResources]) -> str:
    known = sorted({other for node in nodes for other in node.amounts if other != "object_store_memory"})
    hint = did_you_mean(name, known)
    if name in _SHOWN:
        return (
            f"The cluster has no {name}s, or Ray does not detect them. Request none, or start its nodes with "
            f"--num-{name.lower()}s."
        )
    return (
        f"The cluster has no resource '{name}'.{hint} It has {joined(known)}; others are named when a node is started, "
        f"as in `ray start --resources '{{\"{name}\": 1}}'`."
    )


def _each(nodes: Sequence[NodeResources], part: Amounts) -> str:
    """Return what the nodes have of some resources, nodes that are alike together."""
    kinds: dict[str, int] = {}
    for node in nodes:
        text = amounts_text({name: node.amounts.get(name, 0) for name in part}, " and ")
        kinds[text] = kinds.get(text, 0) + 1
    return "; ".join(f"{count_text(number, 'node')} with {text}" for text, number in kinds.items())


def _sum_of(nodes: Sequence[NodeResources], name: str) -> float:
    return sum(node.amounts.get(name, 0) for node in nodes)


def _largest(nodes: Sequence[NodeResources], name: str) -> float:
    return max(node.amounts.get(name, 0) for node in nodes)


def _rounded(amount: float) -> float:
    return round(amount * UNIT) / UNIT


def _wrapped(label: str, text: str) -> list[str]:
    head = f"{label:<{_LABELS}}"
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=head,
        subsequent_indent=" " * _LABELS,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _are(things: Sequence[str]) -> str:
    return "is" if len(things) == 1 and things[0] not in _SHOWN else "are"
