"""The record that is kept of a search, whatever happens to its trials and to the process that searches."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, PopulationBasedTraining, TrialScheduler

from itwinai.trials.records import Range, Report, SearchRecord, TrialRecord
from itwinai.tune.search_journal import REPORTS, SearchJournal, read_search
from itwinai.tune.search_recorder import OWN, SearchRecorder
from tests.conftest import start_script, wait_for_files
from tests.support.searched import LOSS, QUIET, Steps, StopsAll, recorder_of, run_config, space


@pytest.fixture(scope="module", autouse=True)
def quiet_tune() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        yield


def search(
    folder: Path,
    kinds: list[str],
    x: Any = 0.0,
    *,
    scheduler: TrialScheduler | None = None,
    at_once: int = 2,
    recorder: SearchRecorder | None = None,
    **options: Any,
) -> SearchRecord:
    """Run a search with a trial of each kind, and return its record."""
    recorder = recorder or recorder_of(folder)
    settings = {} if scheduler is None else {"metric": LOSS.metric, "mode": LOSS.mode, "scheduler": scheduler}
    tuner = tune.Tuner(
        tune.with_resources(Steps, {"cpu": 1}),
        param_space=space(folder, kinds, x),
        tune_config=tune.TuneConfig(max_concurrent_trials=at_once, reuse_actors=True, **settings),
        run_config=run_config(folder, recorder, **options),
    )
    tuner.fit()
    return recorder.record()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / REPORTS).read_text().splitlines()]


def state_saved(folder: Path) -> int:
    """Return when Ray has last saved the state of a search."""
    return max(state.stat().st_mtime_ns for state in folder.glob("experiment_state-*.json"))


def numbers(trial: TrialRecord) -> list[int]:
    return [report.number for report in trial.reports]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> tuple[Path, SearchRecord, list[SearchRecord]]:
    """Run a search whose trials end in all ways but by a scheduler."""
    folder = tmp_path_factory.mktemp("ended")
    told: list[SearchRecord] = []
    recorder = recorder_of(
        folder, on_update=told.append, settings={"searcher": "grid"}, ranges={"model.x": Range(0, 1)}
    )
    kinds = ["ends", "says so", "no number", "fails", "dies"]
    return folder, search(folder, kinds, recorder=recorder), told


def test_how_trials_end(ended: tuple[Path, SearchRecord, list[SearchRecord]]) -> None:
    record = ended[1]
    assert [trial.number for trial in record.trials] == list(range(5))
    assert {trial.parameters["kind"]: (trial.status, trial.failures) for trial in record.trials} == {
        "ends": ("finished", 0),
        "says so": ("finished", 0),
        "fails": ("failed", 2),
        "dies": ("finished", 1),
        "no number": ("finished", 0),
    }
    errors = {trial.parameters["kind"]: trial.error for trial in record.trials if trial.error}
    assert errors.pop("dies").startswith("The actor died unexpectedly")
    assert errors == {"fails": "ValueError: this trial fails"}


def test_reports(ended: tuple[Path, SearchRecord, list[SearchRecord]]) -> None:
    folder, record, _ = ended
    of = {trial.parameters["kind"]: trial for trial in record.trials}
    assert numbers(of["ends"]) == numbers(of["says so"]) == numbers(of["dies"]) == [1, 2, 3, 4]
    assert numbers(of["fails"]) == [1, 2]
    assert [report.metrics["loss"] for report in of["ends"].reports] == [1, 1 / 2, 1 / 3, 1 / 4]
    assert set(of["ends"].reports[0].metrics) == {"loss", "process"}
    assert all(math.isnan(report.metrics["loss"]) for report in of["no number"].reports)
    processes = [report.metrics["process"] for report in of["dies"].reports]
    assert processes[1] != processes[2] == processes[3]
    for trial in record.trials:
        seconds = [0.0, *(report.seconds for report in trial.reports), trial.seconds]
        assert seconds == sorted(seconds)
        moments = [0.0, *(report.at or 0.0 for report in trial.reports), record.seconds]
        assert moments == sorted(moments)
        assert Path(trial.folder).parent == folder and Path(trial.folder).is_dir()
        assert Path(trial.folder).name.startswith(trial.name)
        assert trial.checkpoint == f"checkpoint-{len(trial.reports)}"


def test_the_file_says_all(ended: tuple[Path, SearchRecord, list[SearchRecord]]) -> None:
    folder, record, _ = ended
    read = read_search(folder)
    assert repr(read) == repr(record)  # nan is not equal to itself
    assert (read.name, read.objectives, read.parameters) == ("steps", (LOSS,), ("model.x", "kind"))
    assert (read.settings, read.ranges) == ({"searcher": "grid"}, {"model.x": Range(0, 1)})


def test_somebody_is_told(ended: tuple[Path, SearchRecord, list[SearchRecord]]) -> None:
    _, record, told = ended
    assert repr(told[-1]) == repr(record)
    assert [len(one.trials) for one in told] == sorted(len(one.trials) for one in told)
    seen = {trial.status for one in told for trial in one.trials}
    assert {"finished", "failed"} <= seen
    assert seen & {"running", "waiting"}  # on a machine that is busy, it may miss when they run
    running = [trial.seconds for one in told for trial in one.trials if trial.number == 4 and trial.status == "running"]
    assert running == sorted(running)


def test_functions_end_by_returning(tmp_path: Path, local_ray: None) -> None:
    def trial(config: dict[str, Any]) -> None:
        for number in range(config["x"]):
            tune.report({"loss": number})

    folder = tmp_path / "functions"
    recorder = recorder_of(folder)
    parameters = {"x": tune.grid_search([0, 3]), "kind": ""}
    tune.Tuner(trial, param_space=parameters, run_config=run_config(folder, recorder, save_every=0)).fit()
    # They run at the same time, and either may be the first.
    assert sorted((trial.status, len(trial.reports)) for trial in recorder.record().trials) == [
        ("finished", 0),
        ("finished", 3),
    ]


def test_a_scheduler_stops_a_trial(tmp_path: Path, local_ray: None) -> None:
    scheduler = AsyncHyperBandScheduler(max_t=100, grace_period=2, reduction_factor=2)
    record = search(tmp_path / "asha", ["ends"], tune.grid_search([0.0, 5.0]), scheduler=scheduler, at_once=1)
    assert [(trial.status, numbers(trial)) for trial in record.trials] == [
        ("finished", [1, 2, 3, 4]),
        ("stopped", [1, 2]),
    ]


def test_trials_that_run_when_the_search_is_ended(tmp_path: Path, local_ray: None) -> None:
    record = search(tmp_path / "budget", ["endless"], tune.grid_search([0.0, 5.0]), stop=StopsAll())
    assert [trial.status for trial in record.trials] == ["stopped", "stopped"]


def test_trials_of_a_search_that_was_interrupted_wait(tmp_path: Path, local_ray: None) -> None:
    interrupted: list[float] = []

    def interrupt(record: SearchRecord) -> None:
        if not interrupted and sum(len(trial.reports) >= 2 for trial in record.trials) == 2:
            interrupted.append(record.seconds)
            os.kill(os.getpid(), signal.SIGINT)

    folder = tmp_path / "interrupted"
    recorder = recorder_of(folder, on_update=interrupt)
    record = search(folder, ["endless"], tune.grid_search([0.0, 5.0]), recorder=recorder)
    assert [trial.status for trial in record.trials] == ["waiting", "waiting"]
    assert read_search(folder) == record == recorder.record()  # the clocks stand still
    assert record.seconds > interrupted[0]


def test_a_trial_takes_over_another_one(tmp_path: Path, local_ray: None) -> None:
    scheduler = PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=2,
        hyperparam_mutations={"x": [0.0, 1.0, 2.0, 4.0]},
        quantile_fraction=0.5,
        resample_probability=0.0,
        synch=True,
    )
    folder = tmp_path / "pbt"
    record = search(folder, ["together"], tune.grid_search([1.0, 400.0]), scheduler=scheduler)
    assert [trial.status for trial in record.trials] == ["finished", "finished"]
    copied = next(trial for trial in record.trials if trial.reports[0].metrics["loss"] > 400)
    drawn = [
        line["is"]["parameters"]["model.x"]
        for line in lines(folder)
        if line.get("is", {}).get("number") == copied.number
    ]
    assert drawn[0] == 400
    # Also if it took over the other one once more at the very end: with those parameters it has reported nothing.
    assert copied.parameters["model.x"] == drawn[-1] in (0, 1, 2)
    assert numbers(copied) == [1, 2, 3, 4]
    assert [report.metrics["loss"] for report in copied.reports[2:]] == [drawn[-1] + 1 / 3, drawn[-1] + 1 / 4]


def test_a_search_continues_after_its_process_was_killed(tmp_path: Path, local_ray: None) -> None:
    folder = tmp_path / "killed"
    folder.mkdir()
    output = tmp_path / "output"
    address = ray.get_runtime_context().gcs_address
    process = start_script(["-m", "tests.support.searched", str(folder), address], output)
    try:
        wait_for_files(process, [folder / "waits.was"], output)
        for _ in range(2):  # the first state that Ray saves from now on may be one of before
            saved = state_saved(folder)
            while state_saved(folder) == saved:
                assert process.poll() is None, output.read_text()
                time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = read_search(folder)
    assert [(trial.status, numbers(trial)) for trial in before.trials] == [
        ("finished", [1, 2, 3, 4]),
        ("running", [1, 2]),
    ]
    # What Ray has not saved yet, what the trial has reported since its last checkpoint, and half a line.
    lost = {"number": 2, "name": "lost", "parameters": {"model.x": 0.5}, "status": "running"}
    waiting = next(line["trial"] for line in lines(folder) if line.get("is", {}).get("number") == 1)
    later = {"at": 500.0, "trial": waiting, "number": 1, "report": 3, "seconds": 400.0, "metrics": {"loss": -1.0}}
    with (folder / REPORTS).open("a") as file:
        file.write(
            json.dumps({"at": 500.0, "trial": "lost", "is": lost}) + "\n" + json.dumps(later) + "\n" + '{"at": 50'
        )

    tune.Tuner.restore(str(folder), Steps).fit()

    after = read_search(folder)
    assert [(trial.number, trial.status, numbers(trial)) for trial in after.trials] == [
        (0, "finished", [1, 2, 3, 4]),
        (1, "finished", [1, 2, 3, 4]),
        (2, "stopped", []),
        (3, "finished", [1, 2, 3, 4]),
    ]
    assert after.trials[0] == before.trials[0]
    first, second = after.trials[1].reports[1:3]
    assert first.metrics["process"] != second.metrics["process"]
    assert second.metrics["loss"] == 1 / 3
    assert second.seconds > 400 and (second.at or 0) > 500  # the time was spent, though for nothing
    assert after.seconds > 500


@pytest.mark.parametrize("x", [0.5, 0.7])
def test_a_trial_that_was_over_does_not_tell_what_pbt_has_copied_to_it(x: float, tmp_path: Path) -> None:
    recorder = recorder_of(tmp_path)
    recorder.setup()
    trial: Any = SimpleNamespace(
        trial_id="a", config={"x": 0.5, "kind": ""}, custom_trial_name="a", path="", num_failures=0, status="RUNNING"
    )
    recorder.on_trial_start(0, [], trial)
    own = {"loss": 0.3, "training_iteration": 1, "config": trial.config, OWN: {"again": True}}
    recorder.on_trial_result(1, [], trial, own)  # before the search was killed, which does not know it
    recorder.on_trial_result(2, [], trial, {**own, "loss": 0.1, "config": {"x": x, "kind": ""}})
    (known,) = recorder.record().trials
    assert [report.metrics["loss"] for report in known.reports] == [0.3]
    assert known.parameters == {"model.x": 0.5, "kind": ""}


def test_a_journal_by_itself(tmp_path: Path) -> None:
    file = SearchJournal(tmp_path)
    file.write_search(SearchRecord("by hand", [LOSS], ["x"], ()), 0.0)
    file.write_trial("a", TrialRecord(0, "first", {"x": (1, Path("y"))}, "running"), 1.0)
    for number in (1, 2, 3):
        file.write_report("a", Report(number, number, {"loss": number}), f"checkpoint-{number}", 1.0 + number)
    file.write_report("a", Report(2, 7.0, {"loss": math.inf}), None, 8.0)
    file.write_time(9.5)
    record = read_search(tmp_path)
    assert record.seconds == 9.5
    (trial,) = record.trials
    assert trial.parameters == {"x": [1, "y"]}
    assert (trial.seconds, trial.checkpoint) == (7, "checkpoint-3")
    assert trial.reports == (Report(1, 1, {"loss": 1}, 2.0), Report(2, 7, {"loss": math.inf}, 8.0))
    assert SearchJournal(tmp_path).history == file.history
