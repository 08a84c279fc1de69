"""What is wrong with the nodes of a job, by what they have told, and what to change."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from itwinai.reporting.formatting import count_text

SLOW = 1.5
"""A node is slow if it takes this many times what the others take. Clocks and neighbours alone make 10-20 %."""

SKEW = 2.0
"""Seconds by which clocks may differ. The newest checkpoint is found by when it was written."""

_ALIKE = {
    "python": "Python",
    "torch": "torch",
    "itwinai": "itwinai",
    "commit": "your code's commit",
}


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or may be.

    Attributes:
        level: an error ends the job before it trains.
        text: what is wrong.
        advice: what to change.
        nodes: which are sick, and have to be left out; empty if the fault is none of a node.
    """

    level: Literal["error", "warning"]
    text: str
    advice: str
    nodes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.level}: {self.text}. {self.advice}."


@dataclass(frozen=True)
class Plan:
    """What a job is to run on its nodes.

    Attributes:
        nodes: their names.
        tasks_per_node: workers on each; None if srun does not start them.
        devices_per_node: devices that the config asks for on each; None for as many as there are.
        cores_per_node: cores that the job has on each; 0 if it is not known.
        threads: ``OMP_NUM_THREADS``; None if it is not set.
    """

    nodes: Sequence[str]
    tasks_per_node: int | None = None
    devices_per_node: int | None = None
    cores_per_node: int = 0
    threads: int | None = None


def find_problems(plan: Plan, told: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Return what is wrong, errors first.

    Args:
        plan: what the job is to run.
        told: what each node has told, by its name; see `itwinai.slurm.node_check`.
    """
    found = [
        *_silent(plan, told),
        *_tasks(plan, told),
        *_folder(told),
        *_network(told),
        *_unlike(told),
        *_compute(told),
        *_threads(plan),
        *_clocks(told),
    ]
    return sorted(found, key=lambda one: one.level != "error")


def _silent(plan: Plan, told: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    for node in plan.nodes:
        parts = told.get(node, {})
        if parts.get("done"):
            continue
        if not parts:
            text = f"{node} does not answer"
        elif "torch" not in parts:
            text = f"{node} does not get beyond importing torch"
        elif "seconds" not in parts:
            text = f"{node} does not finish a matrix product"
        else:
            continue  # it waits for the others
        yield Finding("error", text, f"Leave it out (--exclude {node}) and tell whoever runs the cluster", (node,))


def _tasks(plan: Plan, told: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    tasks, asked = plan.tasks_per_node, plan.devices_per_node
    gpus = {node: parts["gpus"] for node, parts in told.items() if "gpus" in parts}
    if tasks and asked and tasks != asked:
        yield Finding(
            "error",
            f"srun starts {count_text(tasks, 'task')} on each node, and {count_text(asked, 'device')} are asked for "
            "there",
            f"Each device needs a task of its own: use --ntasks-per-node={asked}, or trainer.devices={tasks}",
        )
    most = max(gpus.values(), default=0)
    if most and tasks and tasks != most:
        text = f"srun starts {count_text(tasks, 'task')} on each node, and the job has {count_text(most, 'GPU')} there"
        advice = f"Each GPU needs a task of its own: use --ntasks-per-node={most}, or --gpus-per-node={tasks}"
        yield Finding("error", text, advice)
    elif most and not tasks and asked and asked > most:
        text = f"{count_text(asked, 'worker')} are to run on each node, and the job has {count_text(most, 'GPU')} there"
        yield Finding("error", text, f"Ask for --gpus-per-node={asked}, or for fewer workers")
    if len(set(gpus.values())) > 1:
        fewer = tuple(node for node in gpus if gpus[node] < most)
        listed = ", ".join(f"{gpus[node]} on {node}" for node in fewer)
        advice = f"A GPU may have failed there; leave the node out (--exclude {','.join(fewer)})"
        yield Finding("error", f"not all nodes have {most} GPUs: {listed}", advice, fewer)


def _folder(told: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    unseen = [node for node, parts in told.items() if parts.get("folder_seen") is False]
    if unseen:
        yield Finding(
            "error",
            f"{_list(unseen)} not see the job's folder as its first node does",
            "Submit from a folder on a file system that all nodes share",
        )
    problems = {node: parts["folder_problem"] for node, parts in told.items() if parts.get("folder_problem")}
    for node, problem in problems.items():
        if node not in unseen:
            yield Finding(
                "error",
                f"{node} cannot write to the job's folder ({problem})",
                "Make room, or submit from a folder where you may write",
            )


def _network(told: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    problems: dict[tuple[str, str], list[str]] = defaultdict(list)
    for node, parts in told.items():
        for text, advice in parts.get("address_problems", ()):
            problems[text, advice].append(node)
        if parts.get("port_taken"):
            yield Finding(
                "error",
                f"the port of rank 0 is taken on {node} ({parts['port_taken']})",
                "Another job may run there; set MASTER_PORT to a free port",
            )
    for (text, advice), nodes in problems.items():
        yield Finding("error", f"on {', '.join(nodes)}: {text}", advice)
    if problems:
        return
    unconnected = {node: parts["group_problem"] for node, parts in told.items() if parts.get("group_problem")}
    for node, problem in unconnected.items():
        yield Finding(
            "error",
            f"{node}: {problem.rstrip('.')}",
            "Check the firewall between the nodes, and name the interface that connects them: GLOO_SOCKET_IFNAME and "
            "NCCL_SOCKET_IFNAME",
        )
    names = list(told)
    trips = {
        names[int(rank)] if int(rank) < len(names) else rank: seconds
        for parts in told.values()
        for rank, seconds in parts.get("round_trips", {}).items()
    }
    yield from _slow(trips, "takes {times:.1f} times as long as others to receive and send 4 MB", "network")


def _unlike(told: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    for key, name in _ALIKE.items():
        values = {node: parts[key] for node, parts in told.items() if key in parts}
        if len(set(values.values())) < 2:
            continue
        usual = Counter(values.values()).most_common(1)[0][0]
        others = ", ".join(f"{value or 'none'} on {node}" for node, value in values.items() if value != usual)
        yield Finding(
            "error",
            f"not all nodes have the same {name}: {usual or 'none'}, but {others}",
            "Use one environment and one folder of code, on a file system that all nodes share",
        )


def _compute(told: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    for node, parts in told.items():
        for device, problem in parts.get("wrong", {}).items():
            advice = f"Leave it out (--exclude {node}) and tell whoever runs the cluster"
            yield Finding("error", f"{device} of {node}: {problem}", advice, (node,))
    seconds = {
        f"{device} of {node}": took for node, parts in told.items() for device, took in parts.get("seconds", {}).items()
    }
    yield from _slow(seconds, "takes {times:.1f} times as long as others for a matrix product", "processes")


def _slow(seconds: Mapping[str, float], what: str, kind: str) -> Iterator[Finding]:
    """Yield a warning for each that takes longer than the others."""
    for name, took in seconds.items():
        others = [other for key, other in seconds.items() if key != name]
        if others and took > SLOW * statistics.median(others):
            seen = "its network" if kind == "network" else "other processes there, and its temperature and clock"
            yield Finding(
                "warning",
                f"{name} {what.format(times=took / statistics.median(others))}",
                f"Every step waits for the slowest: look at {seen}, or leave the node out with --exclude",
            )


def _threads(plan: Plan) -> Iterator[Finding]:
    tasks, cores, threads = plan.tasks_per_node, plan.cores_per_node, plan.threads
    if not tasks or not cores:
        return
    share = max(cores // tasks, 1)
    if threads is None:
        if tasks > 1:
            text = f"OMP_NUM_THREADS is not set, and {tasks} tasks share {count_text(cores, 'core')} on each node"
            yield Finding("warning", text, f"Set OMP_NUM_THREADS={share}")
    elif threads * tasks > cores:
        text = f"{count_text(tasks, 'task')} with OMP_NUM_THREADS={threads} want more than the {cores} cores of a node"
        yield Finding("warning", text, f"Set OMP_NUM_THREADS={share}, or ask for --cpus-per-task={threads}")


def _clocks(told: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    for node, parts in told.items():
        if abs(parts.get("skew", 0.0)) > SKEW:
            yield Finding(
                "warning",
                f"the clock of {node} is {abs(parts['skew']):.0f} s {'ahead' if parts['skew'] > 0 else 'behind'}",
                "Files of several nodes are ordered by their times; tell whoever runs the cluster",
            )


def _list(nodes: Sequence[str]) -> str:
    return f"{', '.join(nodes)} {'does' if len(nodes) == 1 else 'do'}"
