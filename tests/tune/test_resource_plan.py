"""How many trials run at once, whether Ray agrees, and what is said of it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from itwinai.errors import ConfigurationError, ResourceError
from itwinai.reporting.formatting import span_text
from itwinai.tune.resource_plan import ResourcePlan, make_plan
from itwinai.tune.resources import Amounts, NodeResources, TrialResources
from tests.conftest import RunCommand, python

GPU_NODE = {"CPU": 8.0, "GPU": 4.0}


def nodes(*amounts: Amounts) -> list[NodeResources]:
    return [NodeResources(str(place), f"node{place}", have) for place, have in enumerate(amounts)]


def plan_of(resources: TrialResources, *amounts: Amounts, trials: int | None = 32, **options: Any) -> ResourcePlan:
    return make_plan(resources, nodes(*amounts), trials, **options)


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory, run_command: RunCommand) -> dict[str, Any]:
    """Run searches on a cluster of three nodes, in a process of its own: this one may be connected to another."""
    folder = tmp_path_factory.mktemp("placed")
    finished = run_command(python("-m", "tests.support.placed", str(folder)))
    assert finished.code == 0, finished.output
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


@pytest.mark.parametrize(("name", "at_once"), [("local", 2), ("spread", 1), ("licence", 2)])
def test_ray_runs_as_many_trials_as_planned(placed: dict[str, Any], name: str, at_once: int) -> None:
    found = placed[name]
    assert found["at_once"] == at_once
    assert len(found["trials"]) == at_once + 1
    begins = [trial["begin"] for trial in found["trials"]]
    most = max(sum(trial["begin"] <= begin <= trial["end"] for trial in found["trials"]) for begin in begins)
    assert most == at_once


def test_workers_on_several_nodes_leave_the_trial_its_process(placed: dict[str, Any]) -> None:
    assert [trial["nodes"] for trial in placed["spread"]["trials"]] == [2, 2]
    assert all(trial["given"] == {} for trial in placed["spread"]["trials"])
    assert all(trial["given"] == {"CPU": 2.0} for trial in placed["local"]["trials"])


def test_the_cluster_is_seen_as_it_is(placed: dict[str, Any]) -> None:
    seen = [{name: node[name] for name in ("CPU", "licence") if name in node} for node in placed["nodes"]]
    assert sorted(seen, key=lambda node: (node["CPU"], len(node))) == [
        {"CPU": 1.0},
        {"CPU": 2.0},
        {"CPU": 2.0, "licence": 2.0},
    ]
    assert not any(name.startswith("node:") for node in placed["nodes"] for name in node)
    assert placed["local"]["idle"]["CPU"] == 1
    assert placed["local"]["text"].startswith("resources   3 nodes, 5 CPUs, 0 GPUs\n")
    assert "The largest of 3 nodes has 2 CPUs" in placed["too large"]["error"]


@pytest.mark.parametrize(
    ("resources", "amounts", "at_once", "room", "idle"),
    [
        (TrialResources(2), [{"CPU": 3}, {"CPU": 3}], 2, (1, 1), {"CPU": 2}),
        (TrialResources(2, spread=True), [{"CPU": 3}, {"CPU": 3}], 3, (3, 3), {"CPU": 0}),
        (TrialResources(1, {"GPU": 0.25}), [GPU_NODE], 8, (8,), {"CPU": 0, "GPU": 2}),
        # A part of a GPU is of one GPU: three times 0.3 on each.
        (TrialResources(1, {"GPU": 0.3, "CPU": 0.1}), [GPU_NODE], 12, (12,), {"CPU": 6.8, "GPU": 0.4}),
        (TrialResources(1, {"CPU": 0.1}), [{"CPU": 1}], 10, (10,), {"CPU": 0}),
        (TrialResources(2, {"GPU": 1}), [GPU_NODE, {"CPU": 64, "GPU": 1}], 2, (2, 0), {"CPU": 68, "GPU": 1}),
        (TrialResources(1, {"CPU": 0, "GPU": 1}), [{"CPU": 2, "GPU": 4}], 4, (4,), {"CPU": 2, "GPU": 0}),
        (TrialResources(3, {"x": 2}), [{"CPU": 9, "x": 6}, {"CPU": 9, "x": 5}], 1, (1, 0), {"CPU": 15, "x": 5}),
    ],
)
def test_packing(
    resources: TrialResources, amounts: list[Amounts], at_once: int, room: tuple[int, ...], idle: Amounts
) -> None:
    plan = plan_of(resources, *amounts)
    assert (plan.at_once, tuple(plan.room), dict(plan.idle)) == (at_once, room, idle)
    assert plan.rounds == math.ceil(32 / at_once)


@pytest.mark.parametrize(
    ("resources", "options", "at_once", "limit"),
    [
        (TrialResources(1), {}, 8, "the CPUs are the limit"),
        (TrialResources(1, {"GPU": 1}), {}, 4, "the GPUs are the limit"),
        (TrialResources(1, {"CPU": 2, "GPU": 1}), {}, 4, "the CPUs and the GPUs are the limit"),
        (TrialResources(1), {"max_concurrent": 3}, 3, "max_concurrent is the limit, there is room for 8"),
        (TrialResources(1), {"max_concurrent": 0}, 8, "the CPUs are the limit"),
        (TrialResources(1), {"trials": 5}, 5, "that is all of them, there is room for 8"),
        (TrialResources(1), {"trials": 8, "max_concurrent": 8}, 8, "that is all of them"),
    ],
)
def test_what_the_limit_is(resources: TrialResources, options: dict[str, Any], at_once: int, limit: str) -> None:
    plan = plan_of(resources, GPU_NODE, **options)
    assert (plan.at_once, plan.limit) == (at_once, limit)


def test_text() -> None:
    plan = plan_of(TrialResources(2, strategy="ddp"), {"CPU": 4.0}, {"CPU": 4.0})
    assert plan.text() == (
        "resources   2 nodes, 8 CPUs, 0 GPUs\n"
        "each trial  2 workers (ddp) with 1 CPU each, on one node\n"
        "at once     4 trials: the CPUs are the limit\n"
        "idle        nothing\n"
        "time        32 trials in 8 rounds; one minute per trial makes 8 min"
    )


@pytest.mark.parametrize(
    ("resources", "amounts", "idle"),
    [
        (TrialResources(2, {"GPU": 1}), GPU_NODE, "4 CPUs; each worker could have 2 CPUs"),
        (TrialResources(1, {"CPU": 4}), GPU_NODE, "4 GPUs; no trial asks for GPUs"),
        (
            TrialResources(1, {"CPU": 3}),
            GPU_NODE,
            "2 CPUs, 4 GPUs; each worker could have 4 CPUs; no trial asks for GPUs",
        ),
        (TrialResources(1, {"CPU": 4, "GPU": 1}), GPU_NODE, "2 GPUs"),
        (TrialResources(1, {"memory": 2**30}), {"CPU": 2, "memory": 5 * 2**30}, "3 GiB memory"),
    ],
)
def test_what_is_idle_and_what_could_be_done(resources: TrialResources, amounts: Amounts, idle: str) -> None:
    assert f"\nidle        {idle}\n" in plan_of(resources, amounts).text()


def test_idle_cpus_are_not_offered_where_more_trials_could_run() -> None:
    assert (
        "\nidle        6 CPUs, 4 GPUs; no trial asks for GPUs\n"
        in plan_of(TrialResources(1), GPU_NODE, trials=2).text()
    )


def test_a_trial_that_lies_on_one_node_is_said_to_cost_room() -> None:
    local = plan_of(TrialResources(2), {"CPU": 3}, {"CPU": 3})
    assert (
        local.limit
        == "the CPUs are the limit; the workers of a trial share one node, otherwise there would be room for 3"
    )
    assert plan_of(TrialResources(2), {"CPU": 4}, {"CPU": 2}).limit == "the CPUs are the limit"


@pytest.mark.parametrize(
    ("options", "seconds", "time"),
    [
        ({}, None, "32 trials in 8 rounds; one minute per trial makes 8 min"),
        ({"time_budget_s": 300}, None, "32 trials in 8 rounds, at most 5 min; one minute per trial makes 8 min"),
        ({"seconds_per_trial": 90}, 720, "32 trials in 8 rounds, about 12 min at 1 min 30 s per trial"),
        (
            {"seconds_per_trial": 90, "time_budget_s": 300},
            300,
            "32 trials in 8 rounds, about 12 min at 1 min 30 s per trial; the budget of 5 min is enough for "
            "about 12 of them",
        ),
        (
            {"seconds_per_trial": 90, "time_budget_s": 60},
            60,
            "32 trials in 8 rounds, about 12 min at 1 min 30 s per trial; the budget of 1 min is over "
            "before the first has ended",
        ),
        ({"trials": None}, None, "until it is stopped; one minute per trial makes 240 trials per hour"),
        (
            {"trials": -1, "seconds_per_trial": 90},
            None,
            "until it is stopped; about 160 trials per hour at 1 min 30 s each",
        ),
        ({"trials": -1, "time_budget_s": 3600}, 3600, "for 1 h; one minute per trial makes 240 trials"),
        (
            {"trials": -1, "time_budget_s": 3600, "seconds_per_trial": 90},
            3600,
            "for 1 h; about 160 trials at 1 min 30 s each",
        ),
    ],
)
def test_how_long_it_takes(options: dict[str, Any], seconds: float | None, time: str) -> None:
    plan = plan_of(TrialResources(1), {"CPU": 4.0}, **options)
    assert " ".join(plan.text().partition("time        ")[2].split()) == time
    assert plan.seconds() == seconds


@pytest.mark.parametrize(
    ("resources", "amounts", "said"),
    [
        (
            TrialResources(8, strategy="ddp"),
            [{"CPU": 4}, {"CPU": 4}],
            "8 workers (ddp) with 1 CPU each, on one node (8 CPUs in all). The largest of 2 nodes has 4 CPUs. Use "
            "strategy ray, whose workers can be on different nodes, fewer workers per trial or a larger cluster.",
        ),
        (
            TrialResources(9, spread=True, strategy="ray"),
            [{"CPU": 4}, {"CPU": 4}],
            "The whole cluster has 8 CPUs, with room for 8 workers. Use fewer workers per trial or a larger",
        ),
        (TrialResources(1, {"CPU": 6}), [{"CPU": 4}], "has 4 CPUs. Use less per worker or a larger cluster."),
        (
            TrialResources(1, {"GPU": 1}),
            [{"CPU": 4}],
            "no GPUs, or Ray does not detect them. Request none, or start its",
        ),
        (TrialResources(1, {"licens": 1}), [{"CPU": 4, "licence": 1}], "no resource 'licens'. Did you mean 'licence'?"),
        (
            TrialResources(1, {"GPU": 1, "CPU": 4}),
            [{"CPU": 8}, {"CPU": 2, "GPU": 4}, {"CPU": 8}],
            "No node has all of that: 2 nodes with 8 CPUs and 0 GPUs; 1 node with 2 CPUs and 4 GPUs.",
        ),
        (TrialResources(1), [], "the cluster has no nodes"),
    ],
)
def test_a_trial_that_has_no_room(resources: TrialResources, amounts: list[Amounts], said: str) -> None:
    with pytest.raises(ResourceError) as raised:
        plan_of(resources, *amounts)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 0}, "must be at least 1; got 0"),
        ({"per_worker": {"GPU": 2}}, "a worker uses one device. Ask for 2 workers per trial with 1 GPU each"),
        ({"workers": 2, "per_worker": {"GPU": 0.5}}, "cannot share a GPU"),
        ({"per_worker": {"gpus": 1}}, "no resource 'gpus'. Did you mean 'GPU'?"),
        ({"per_worker": {"CPU": -1}}, "resource 'CPU' per worker must be a number of at least 0; got -1"),
        ({"per_worker": {"CPU": "two"}}, "resource 'CPU' per worker must be a number of at least 0; got 'two'"),
        ({"per_worker": {"CPU": 0}}, "needs nothing"),
        ({"per_worker": {"CPU": 1e-6}}, "steps of 0.0001"),
    ],
)
def test_what_no_worker_can_have(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        TrialResources(**options)
    assert said in str(raised.value)


def test_bundles() -> None:
    assert TrialResources(2, {"GPU": 1}).bundles() == [{"CPU": 2, "GPU": 2}]
    assert TrialResources(2, {"GPU": 1}, spread=True).bundles() == [{}, {"CPU": 1, "GPU": 1}, {"CPU": 1, "GPU": 1}]
    assert TrialResources(1, {"CPU": 0, "GPU": 0.5}).bundles() == [{"GPU": 0.5}]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (1.55, "1.6 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (65, "1 min 05 s"),
        (599.7, "10 min"),
        (3599, "1 h"),
        (3661, "1 h 01 min"),
        (200_000, "2.31 days"),
    ],
)
def test_spans_of_time(seconds: float, text: str) -> None:
    assert span_text(seconds) == text
