"""The run of a whole search, on a real MLflow server, and what many trials do to a database at the same time."""

from __future__ import annotations

import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import MLFlowLogger as LightningMLFlowLogger
from mlflow import MlflowClient
from mlflow.entities import Run

from itwinai.errors import ConfigurationError, LoggerError
from itwinai.trials.records import Objective, Report, SearchRecord, Status, TrialRecord
from itwinai.tune.mlflow_runs import ParentRun, open_parent_run, search_id
from itwinai.tune.trial_loggers import TrialContext, logger_entries
from itwinai.tune.trial_names import trial_name
from tests.conftest import RunCommand
from tests.support.mlflow_server import Server, free_port

pytestmark = pytest.mark.usefixtures("no_mlflow_address")

PASSWORD = "very-secret"
PLAIN = "lightning.pytorch.loggers.MLFlowLogger"


class OwnMLFlowLogger(LightningMLFlowLogger):
    """A logger of a user's own."""


def a_trial(folder: Path, parent: ParentRun, number: int, lr: float) -> TrialContext:
    parameters = {"model.lr": lr}
    name = trial_name(number, parameters)
    return TrialContext(
        "digits", search_id(folder), folder, name, folder / name, parameters, parent.run_id, parent.tracking_uri
    )


def a_record(folder: Path, statuses: dict[str, Status], best: float = 0.25) -> SearchRecord:
    trials = [
        TrialRecord(number, name, {"model.lr": 0.1 * number, "hub.token": PASSWORD}, status, [report(best + number)])
        for number, (name, status) in enumerate(statuses.items())
    ]
    return SearchRecord("digits", [Objective("val_loss", "min")], ["model.lr"], trials, folder=str(folder))


def report(value: float) -> Report:
    return Report(1, 1.0, {"val_loss": value})


def runs_of(client: MlflowClient, parent: ParentRun) -> dict[str, Run]:
    """Return the runs of the parent's experiment by name, with it; no two have the same."""
    runs = client.search_runs([parent.experiment_id])
    named = {run.info.run_name: run for run in runs}
    assert len(named) == len(runs)
    return named


@pytest.mark.parametrize("class_path", [PLAIN, f"{__name__}.OwnMLFlowLogger"])
def test_search_on_a_server_from_start_to_end_and_again(
    class_path: str, server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    client = MlflowClient(server.address)
    experiment = f"of {class_path}"
    with_login = server.address.replace("http://", f"http://me:{PASSWORD}@")
    arguments = {"tracking_uri": with_login, "experiment_name": experiment, "run_name": "net", "tags": {"team": "a"}}
    given = ["csv", {"class_path": class_path, "init_args": arguments}]
    settings = {"searcher": "TPE", "storage_token": PASSWORD}
    parent = open_parent_run(given, "digits", tmp_path, settings)
    assert parent is not None
    for number, lr in enumerate((0.1, 0.2, 0.3)):
        _, entry = logger_entries(given, a_trial(tmp_path, parent, number, lr))
        assert entry["class_path"] == class_path
        logger = LightningMLFlowLogger(**entry["init_args"])
        logger.log_hyperparams({"lr": lr})
        logger.log_metrics({"val_loss": lr}, 1)
        if number == 0:
            logger.finalize("success")
    capfd.readouterr()  # lightning's logger shows the login itself
    trials = [f"00{number}_lr=0.{number + 1}" for number in range(3)]

    runs = runs_of(client, parent)
    assert set(runs) == {"digits", *(f"net {trial}" for trial in trials)}
    main = runs["digits"]
    assert client.get_experiment(parent.experiment_id).name == experiment
    assert (main.info.run_id, main.info.status) == (parent.run_id, "RUNNING")
    assert main.data.tags["itwinai.search.searcher"] == "TPE" and main.data.tags["team"] == "a"
    nested = runs[f"net {trials[1]}"]
    assert nested.data.tags["mlflow.parentRunId"] == parent.run_id and nested.data.tags["team"] == "a"
    assert nested.data.params == {"model.lr": "0.2", "lr": "0.2"} and nested.data.metrics == {"val_loss": 0.2}
    assert [runs[f"net {trial}"].info.status for trial in trials] == ["FINISHED", "RUNNING", "RUNNING"]

    leaderboard = tmp_path / "leaderboard.csv"
    leaderboard.write_text("trial\n")
    statuses: dict[str, Status] = {trials[0]: "finished", trials[1]: "failed", trials[2]: "running"}
    parent.finish(a_record(tmp_path, statuses), "KILLED", [leaderboard])
    runs = runs_of(client, parent)
    assert [runs[f"net {trial}"].info.status for trial in trials] == ["FINISHED", "FAILED", "KILLED"]
    main = runs["digits"]
    assert main.info.status == "KILLED" and main.info.end_time is not None
    reached = {"val_loss": 0.25, "trials": 3, "trials/finished": 1, "trials/failed": 1, "trials/running": 1}
    assert {name: value for name, value in main.data.metrics.items() if value} == reached
    assert best_of(main) == {"trial": trials[0], "model.lr": "0.0", "hub.token": "***"}
    assert [file.path for file in client.list_artifacts(parent.run_id)] == ["leaderboard.csv"]

    again = open_parent_run(given, "digits", tmp_path, {"searcher": "random"})  # the search is resumed
    assert again == parent
    _, entry = logger_entries(given, a_trial(tmp_path, again, 2, 0.3))
    assert entry["init_args"]["run_id"] == runs[f"net {trials[2]}"].info.run_id
    runs = runs_of(client, parent)
    assert runs["digits"].info.status == runs[f"net {trials[2]}"].info.status == "RUNNING"
    assert runs["digits"].data.tags["itwinai.search.searcher"] == "random"
    statuses = {trials[2]: "finished", trials[0]: "finished", trials[1]: "failed"}
    better = a_record(tmp_path, statuses, 0.125)
    best, *others = better.trials
    again.finish(replace(better, trials=[replace(best, parameters={"model.lr": 0.3}), *others]), "FINISHED")
    runs = runs_of(client, parent)
    assert runs[f"net {trials[2]}"].info.status == runs["digits"].info.status == "FINISHED"
    reached = {"val_loss": 0.125, "trials": 3, "trials/finished": 2, "trials/failed": 1}
    assert {name: value for name, value in runs["digits"].data.metrics.items() if value} == reached
    assert best_of(runs["digits"]) == {"trial": trials[2], "model.lr": "0.3"}

    printed = capfd.readouterr()
    assert PASSWORD not in printed.out + printed.err + repr(parent) + parent.location_text()
    assert PASSWORD not in str([run.to_dictionary() for run in runs.values()])
    assert PASSWORD not in "".join(path.read_text() for path in tmp_path.glob("*.*"))


def best_of(run: Run) -> dict[str, str]:
    return {name[13:]: value for name, value in run.data.tags.items() if name.startswith("itwinai.best.")}


def test_several_objectives_have_a_front_and_not_one_best_trial(tmp_path: Path) -> None:
    parent = open_parent_run("mlflow", "digits", tmp_path)
    assert parent is not None
    values = [{"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 2.0}, {"a": 3.0, "b": 1.5}]
    trials = [TrialRecord(i, f"t{i}", {}, "finished", [Report(1, 1.0, found)]) for i, found in enumerate(values)]
    objectives = [Objective("a", "min"), Objective("b", "max")]
    parent.finish(SearchRecord("digits", objectives, [], trials), "FINISHED")
    run = MlflowClient(parent.tracking_uri).get_run(parent.run_id)
    assert {name: run.data.metrics[name] for name in "ab"} == {"a": 1.0, "b": 2.0}
    assert best_of(run) == {"trials": "t0, t1"}


def test_trial_with_changed_parameters_begins_another_run(tmp_path: Path) -> None:
    """MLflow does not let the parameters of a run be changed, and a run with others would be told of wrongly."""
    parent = open_parent_run("mlflow", "digits", tmp_path)
    assert parent is not None
    first = a_trial(tmp_path, parent, 0, 0.1)
    changed = replace(first, parameters={"model.lr": 0.2})
    starts = [first, changed, first, changed]
    entries = [logger_entries("mlflow", start)[0]["init_args"] for start in starts]
    ids = [entry["run_id"] for entry in entries]
    assert ids[0] == ids[2] != ids[1] == ids[3]
    client = MlflowClient(parent.tracking_uri)
    assert [client.get_run(one).data.params for one in ids[:2]] == [{"model.lr": "0.1"}, {"model.lr": "0.2"}]
    assert len(client.search_runs([parent.experiment_id])) == 3
    parent.finish(a_record(tmp_path, {first.trial: "failed"}), "FAILED")
    ended = [client.get_run(one).info.status for one in (parent.run_id, *ids[:2])]
    assert ended == ["FAILED", "FINISHED", "FAILED"]


def test_search_of_the_same_name_has_runs_of_its_own_in_the_experiment(tmp_path: Path) -> None:
    given = {"class_path": "itwinai.loggers.MLFlowLogger", "init_args": {"save_dir": str(tmp_path / "all")}}
    parents = [open_parent_run(given, "digits", tmp_path / name) for name in "ab"]
    assert all(parents)
    assert parents[0].place == parents[1].place and parents[0].run_id != parents[1].run_id
    assert parents[0].tracking_uri == f"sqlite:///{tmp_path / 'all' / 'mlflow.db'}"
    trials = [a_trial(tmp_path / name, parent, 0, 0.1) for name, parent in zip("ab", parents, strict=True)]
    entries = [logger_entries(given, trial) for trial in trials]
    assert entries[0]["init_args"]["run_id"] != entries[1]["init_args"]["run_id"]


def test_address_comes_from_the_variable_but_not_from_another_logger(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    parent = open_parent_run("mlflow", "by variable", tmp_path)
    assert parent is not None and parent.tracking_uri == server.address
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://not-used.invalid")  # of a trial's machine
    (entry,) = logger_entries("mlflow", a_trial(tmp_path, parent, 0, 0.1))
    assert entry["init_args"]["tracking_uri"] == server.address
    elsewhere = {"class_path": PLAIN, "init_args": {"tracking_uri": f"sqlite:///{tmp_path / 'own.db'}"}}
    entry = logger_entries(elsewhere, a_trial(tmp_path, parent, 0, 0.1))
    assert "mlflow.parentRunId" not in entry["init_args"]["tags"]


@pytest.mark.parametrize("given", ["csv", "jsonl,wandb", None, False, {"class_path": "CSVLogger"}])
def test_search_without_mlflow_has_no_such_run(given: Any, tmp_path: Path) -> None:
    assert open_parent_run(given, "digits", tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(60)  # MLflow itself tries for minutes
def test_server_that_is_not_there_is_an_error_within_seconds(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    arguments = {"tracking_uri": f"http://me:{PASSWORD}@{address}"}
    began = time.monotonic()
    with pytest.raises(LoggerError, match=f"No MLflow server answers at http://me:.*@{address}") as caught:
        open_parent_run({"class_path": PLAIN, "init_args": arguments}, "digits", tmp_path)
    assert time.monotonic() - began < 20
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


def test_experiment_that_was_deleted_is_an_error(tmp_path: Path) -> None:
    parent = open_parent_run("mlflow", "digits", tmp_path)
    assert parent is not None
    MlflowClient(parent.tracking_uri).delete_experiment(parent.experiment_id)
    with pytest.raises(ConfigurationError, match="experiment 'digits' was deleted .* --experiment-id 1"):
        open_parent_run("mlflow", "digits", tmp_path)


def test_what_mlflow_refuses_is_told_with_the_address(tmp_path: Path) -> None:
    given = {"class_path": PLAIN, "init_args": {"tracking_uri": "nonsense://somewhere"}}
    with pytest.raises(LoggerError, match="MLflow at nonsense://somewhere rejected a request of the search"):
        open_parent_run(given, "digits", tmp_path)


TRIALS, STEPS, KEYS = 8, 40, 5

AT_ONCE = f"""
import os, sys, traceback
from pathlib import Path

import mlflow.store.tracking.sqlalchemy_store  # before the fork: all shall begin at the same time
from itwinai.loggers.mlflow import MLFlowLogger
from itwinai.tune.trial_loggers import TrialContext, logger_entries

folder, parent, address = Path(sys.argv[1]), *sys.argv[2:]


def log_a_trial(number):
    run = TrialContext("digits", "id", folder, f"trial {{number}}", folder, {{"n": number}}, parent, address)
    (entry,) = logger_entries("mlflow", run)
    logger = MLFlowLogger(**entry["init_args"])
    logger.log_hyperparams({{"number": number}})
    for step in range({STEPS}):
        logger.log_metrics({{f"m{{key}}": step * key for key in range({KEYS})}}, step)
    logger.finalize()


waiting, go = os.pipe()
children = []
for number in range({TRIALS}):
    if (child := os.fork()) == 0:
        os.close(go)
        os.read(waiting, 1)
        try:
            log_a_trial(number)
        except Exception:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    children.append(child)
os.close(go)
codes = [os.waitpid(child, 0)[1] for child in children]
sys.exit(any(codes))
"""


def test_trials_that_begin_at_once_share_one_database(tmp_path: Path, run_command: RunCommand) -> None:
    """Without the parent run seven of eight fail: each makes the tables."""
    parent = open_parent_run("mlflow", "digits", tmp_path)
    assert parent is not None
    script = tmp_path / "at_once.py"
    script.write_text(AT_ONCE)
    command = [sys.executable, str(script), str(tmp_path), parent.run_id, parent.tracking_uri]
    finished = run_command(command, cwd=tmp_path)
    assert finished.code == 0, finished.output
    client = MlflowClient(parent.tracking_uri)
    runs = runs_of(client, parent)
    del runs["digits"]
    assert len(runs) == TRIALS
    for run in runs.values():
        assert run.info.status == "FINISHED"
        for key in range(KEYS):
            history = client.get_metric_history(run.info.run_id, f"m{key}")
            assert sorted((point.step, point.value) for point in history) == [(s, s * key) for s in range(STEPS)]
