"""Exactly those steps run again whose config, inputs, code or versions have changed, and that say so."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.pipelines.project import Project

CHANGES = (
    "raw",
    "notes",
    "raw's time",
    "split's helper",
    "split's helper, same result",
    "count's helper",
    "count's helper, same result",
    "version",
    "weight",
    "comment",
    "nothing",
)
# What runs by itself after a change, and what of its result is another.
RUNS = {
    "raw": ("split", {"split.train", "split.test"}),
    "notes": ("report", set()),
    "split's helper": ("split", {"split.train", "split.test"}),
    "split's helper, same result": ("split", set()),
    "count's helper": ("count", {"count"}),
    "count's helper, same result": ("count", set()),
    "version": ("score", {"score.score"}),
    "weight": ("score", {"score.score"}),
}
NEEDS = {
    "count": {"split.train"},
    "score": {"split.test"},
    "report": {"count", "score.score"},
}


def apply(project: Project, change: str, number: int) -> None:
    """Change a project in one way that was not there before."""
    if change == "raw":
        project.change("raw.txt", f"rain{number:04}")
    elif change == "notes":
        project.change("notes.txt", f"as measured {number:04}")
    elif change == "raw's time":
        path = project.folder / "raw.txt"
        path.touch()
    elif change.startswith(("split's", "count's")):
        name, same = change[:5], change.endswith("same result")
        before = project.numbers[name]
        project.numbers[name] = before + 1 if same else (before // 10 + 1) * 10
    elif change == "version":
        project.versions["other_package"] = str(number + 2)
    elif change == "weight":
        project.pipeline["steps"]["score"]["init_args"]["weight"] = number + 2.0
    elif change == "comment":
        project.comment += 1
    project.write()


def expected(changes: list[str]) -> set[str]:
    """Return the steps that run after some changes, by what each reads."""
    runs, changed = set(), set[str]()
    for step in ("split", "count", "score", "report"):
        own = [change for change in changes if RUNS.get(change, ("",))[0] == step]
        if own or NEEDS.get(step, set()) & changed:
            runs.add(step)
            changed |= set().union(*(RUNS[change][1] for change in own))
            if NEEDS.get(step, set()) & changed:  # of other inputs these steps make other results
                changed |= {"count": {"count"}, "score": {"score.score"}}.get(step, set())
    return runs


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rounds=st.lists(
        st.lists(st.sampled_from(CHANGES), min_size=1, max_size=2, unique_by=lambda change: change[:5]),
        min_size=1,
        max_size=3,
    )
)
def test_exactly_the_dependants_of_a_change_run(project: Project, rounds: list[list[str]]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.syspath_prepend(f"{folder}/site-packages")
        own = Project(Path(folder))
        own.write()
        assert set(own.run()) == {"split", "count", "score", "report"}
        for number, changes in enumerate(rounds):
            for place, change in enumerate(changes):
                apply(own, change, number * 10 + place)
            planned = {one.name: one.status for one in own.plan().steps}
            ran = own.run()
            assert set(ran) == expected(changes), (changes, ran)
            # The plan has foreseen what can be known without running.
            assert all(planned[name] in ("runs", "may run") for name in ran)
            assert all(name in ran for name, status in planned.items() if status == "runs")
            assert own.run() == {}


@pytest.mark.parametrize(
    ("change", "step", "reason"),
    [
        ("split's helper", "split", "project/helpers.py changed (number_of_split)"),
        ("raw", "split", "raw.txt changed"),
        ("version", "score", "other_package 1 → 2"),
        ("weight", "score", "weight 1.0 → 2.0"),
    ],
)
def test_the_reason_is_said(project: Project, change: str, step: str, reason: str) -> None:
    project.run()
    apply(project, change, 0)
    assert project.plan().of(step).reasons == [reason]


def test_a_helper_of_a_helper_and_a_new_default_count(project: Project) -> None:
    project.run()
    helpers = project.folder / "project" / "helpers.py"
    helpers.write_text(helpers.read_text().replace("return value", "return int(value)"))
    assert project.run() == {"split": "project/helpers.py changed (_constant)"}  # and its dependants not: same content
    steps = project.folder / "project" / "steps.py"
    steps.write_text(steps.read_text().replace("share: int = 2", "share: int = 3"))
    assert project.run() == {
        "split": "share 2 → 3, project/steps.py changed (split)",
        "count": "split.train changed",
        "score": "split.test changed",
        "report": "count changed, score.score changed",
    }


def test_outputs_that_were_removed_or_changed_are_made_again(project: Project) -> None:
    project.run()
    (project.folder / "runs" / "split" / "test").write_text("by hand")
    assert project.run() == {"split": "files in runs/split were changed"}
    (project.folder / "runs" / "report" / "report.txt").unlink()
    assert project.run() == {"report": "its output runs/report/report.txt is gone"}
    assert project.run() == {}


def test_a_file_that_a_step_writes_elsewhere_is_its_output(project: Project) -> None:
    steps = project.folder / "project" / "steps.py"
    steps.write_text(steps.read_text() + "def copy(to: Path, text: str) -> None:\n    to.write_text(text)\n")
    project.pipeline["steps"] = {
        "copy": {"class_path": "project.steps.copy", "init_args": {"to": "copy.txt", "text": "a"}}
    }
    assert project.run() == {"copy": "has not run yet"}
    assert project.run() == {}
    Path("copy.txt").write_text("b")
    assert project.run() == {"copy": "its output copy.txt was changed"}
    Path("copy.txt").unlink()
    assert project.run() == {"copy": "its output copy.txt is gone"}
    assert Path("copy.txt").read_text() == "a"


def test_a_computed_import_lets_the_whole_package_count(project: Project) -> None:
    steps = project.folder / "project" / "steps.py"
    steps.write_text(
        steps.read_text() + "def lazy(name: str) -> int:\n    from importlib import import_module\n\n"
        "    return import_module(f'project.{name}').number_of_count()\n"
    )
    project.pipeline["steps"] = {"lazy": {"class_path": "project.steps.lazy", "init_args": {"name": "helpers"}}}
    project.run()
    project.numbers["count"] += 1
    (project.folder / "project" / "helpers.py").write_text(
        (project.folder / "project" / "helpers.py").read_text().replace("return 10", "return 11")
    )
    assert project.run() == {"lazy": "project/helpers.py changed (number_of_count)"}


def test_values_and_secrets_in_the_config(project: Project) -> None:
    steps = project.folder / "project" / "steps.py"
    steps.write_text(steps.read_text() + "def get(api_token: str, rows: int = 1) -> int:\n    return rows\n")

    def with_(token: str, rows: int) -> dict[str, Any]:
        return {"get": {"class_path": "project.steps.get", "init_args": {"api_token": token, "rows": rows}}}

    project.pipeline["steps"] = with_("hunter2hunter2", 1)
    project.run()
    assert "hunter2" not in (project.folder / "runs" / "get" / "step.json").read_text()
    project.pipeline["steps"] = with_("another-secret", 2)
    (reason,) = [project.run()["get"]]
    assert "rows 1 → 2" in reason and "api_token secret" in reason and "another" not in reason


def test_steps_and_ranges(project: Project) -> None:
    project.run()
    status = {one.name: one.status for one in project.plan(["count..report"], ["score"]).steps}
    assert status == {"split": "as it is", "count": "cached", "score": "runs", "report": "may run"}
    apply(project, "raw", 0)
    plan = project.plan(["score"])
    assert [(one.name, one.status) for one in plan.steps] == [("split", "as it is"), ("score", "cached")]
    assert plan.of("split").reasons == ["out of date: raw.txt changed"]
    assert [one.name for one in project.plan(["..count"]).steps] == ["split", "count"]
    assert [one.status for one in project.plan(["score.."]).steps] == ["as it is", "as it is", "cached", "cached"]
