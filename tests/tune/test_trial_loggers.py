"""Two trials log to every logger, one of them is started twice, and everything is where one looks for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import wandb
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from itwinai import ItwinaiTrainer
from itwinai.errors import ConfigurationError
from itwinai.loggers.jsonl import read_records
from itwinai.loggers.registry import EXPERIMENT, LOGGERS
from itwinai.tune.mlflow_runs import ParentRun, open_parent_run, search_id
from itwinai.tune.settings import Settings
from itwinai.tune.trial_config import BaseConfig
from itwinai.tune.trial_loggers import TrialContext, TrialLoggers, logger_entries
from itwinai.tune.trial_names import trial_name
from tests.support import wandb_files
from tests.support.cases import Regression, loader

STEPS = 13  # of an epoch
LR = "model.init_args.lr"
SECRET = "hunter2-hunter2"


class Tuned(Regression):
    """Logs at every step, and has hyperparameters."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("step/loss", loss)
        return loss


class OwnCSVLogger(CSVLogger):
    """A logger of a user's own."""


class SavingAfterTheFirstEpoch(Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


@dataclass(frozen=True)
class Search:
    """Two trials, of which the first was started twice: it went on after its first epoch, having begun a second one."""

    folder: Path
    parent: ParentRun
    trials: tuple[TrialContext, TrialContext]


def train(run: TrialContext, epochs: int, checkpoint: str | None = None) -> None:
    """Run a trial as the command line does."""
    trainer = {
        "logger": TrialLoggers(",".join(LOGGERS), run)(run.parameters, run.trial, str(run.folder), checkpoint),
        "default_root_dir": str(run.folder),
        "accelerator": "cpu",
        "max_epochs": epochs,
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    config = {"trainer": trainer, "model": {"lr": run.parameters[LR]}}
    cli = LightningCLI(Tuned, run=False, trainer_class=ItwinaiTrainer, save_config_callback=None, args=config)
    saving = SavingAfterTheFirstEpoch(run.folder / "first.ckpt")
    cli.trainer.callbacks.append(saving)
    cli.trainer.fit(cli.model, loader(8), loader(8), ckpt_path=checkpoint)
    wandb.finish()


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Search]:
    folder = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.delenv("MLFLOW_TRACKING_URI")
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        parent = open_parent_run(",".join(LOGGERS), "digits", folder)
        assert parent is not None
        first, second = (a_run(folder, number, lr, parent) for number, lr in enumerate((0.05, 0.1)))
        train(first, 2)
        train(second, 1)
        train(first, 3, str(first.folder / "first.ckpt"))
        assert list(Path.cwd().iterdir()) == []
    yield Search(folder, parent, (first, second))


def a_run(folder: Path, number: int = 0, lr: float = 0.05, parent: ParentRun | None = None) -> TrialContext:
    parameters = {LR: lr, "data.init_args.api_key": SECRET}
    name = trial_name(number, parameters)
    return TrialContext(
        search="digits",
        search_id=search_id(folder),
        search_folder=folder,
        trial=name,
        folder=folder / "trials" / name,
        parameters=parameters,
        parent_run_id=None if parent is None else parent.run_id,
        tracking_uri="" if parent is None else parent.tracking_uri,
    )


# ----------------------------------------------------------------------------------------------- what two trials leave


def test_mlflow_has_one_experiment_with_a_nested_run_per_trial(search: Search) -> None:
    client = MlflowClient(f"sqlite:///{search.folder / 'mlflow.db'}")
    assert {found.name for found in client.search_experiments()} == {"Default", "digits"}
    experiment = client.get_experiment_by_name("digits")
    assert experiment.artifact_location == (search.folder / "mlartifacts").as_uri()
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"digits", "000_lr=0.05", "001_lr=0.1"}
    assert runs.pop("digits").info.run_id == search.parent.run_id
    for trial in search.trials:
        run = runs[trial.trial]
        assert run.data.tags["mlflow.parentRunId"] == search.parent.run_id
        assert run.info.status == "FINISHED"
        lr = str(trial.parameters[LR])
        assert run.data.params.items() >= {LR: lr, "data.init_args.api_key": "***", "lr": lr}.items()
        assert "val_loss" in run.data.metrics
    once = [point.step for point in client.get_metric_history(runs["001_lr=0.1"].info.run_id, "step/loss")]
    assert once == list(range(STEPS))


def test_trial_that_is_started_again_continues_in_its_mlflow_run(search: Search) -> None:
    client = MlflowClient(search.parent.tracking_uri)
    (run,) = client.search_runs([search.parent.experiment_id], "attributes.run_name = '000_lr=0.05'")
    history = client.get_metric_history(run.info.run_id, "step/loss")
    repeated = [*range(STEPS, 2 * STEPS)]
    assert sorted(point.step for point in history) == sorted([*range(3 * STEPS), *repeated])
    newest = max(history, key=lambda point: (point.step, point.timestamp))
    assert run.data.metrics["step/loss"] == newest.value and newest.step == 3 * STEPS - 1


def test_wandb_runs_are_in_one_group_and_named(search: Search) -> None:
    found: dict[str, list[wandb_files.OfflineRun]] = {}
    for trial in search.trials:
        files = sorted((trial.folder / "wandb").glob("offline-run-*/*.wandb"))
        found[trial.trial] = [wandb_files.read(file) for file in files]
    (once,), starts = found["001_lr=0.1"], found["000_lr=0.05"]
    assert len(starts) == 2
    for run, name in [(once.run, "001_lr=0.1"), *((start.run, "000_lr=0.05") for start in starts)]:
        assert (run.project, run.run_group, run.display_name) == (EXPERIMENT, "digits", name)
    assert starts[0].run.run_id == starts[1].run.run_id != once.run.run_id
    config = {item.key: json.loads(item.value_json) for item in once.run.config.update}
    assert config["parameters"] == {"model": {"init_args": {"lr": 0.1}}, "data": {"init_args": {"api_key": "***"}}}
    assert [row["trainer/global_step"] for row in once.history if "step/loss" in row] == list(range(STEPS))


def test_files_are_below_the_folder_of_the_trial(search: Search) -> None:
    first, second = (trial.folder for trial in search.trials)
    for folder, starts in ((first, 2), (second, 1)):
        # lightning's logger would have deleted the file of the first start
        csv = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("metrics.csv"))
        assert csv == [f"csv/version_{start}/metrics.csv" for start in range(starts)]
        assert [path.parent for path in folder.rglob("provenance.json")] == [folder / "provenance" / "version_0"]
        steps = [record["step"] for record in read_records(folder / "jsonl" / "version_0") if "step/loss" in record]
        assert steps == ([*range(2 * STEPS), *range(STEPS, 3 * STEPS)] if starts == 2 else [*range(STEPS)])
    document = json.loads((first / "provenance" / "version_0" / "provenance.json").read_text())
    assert len(document["activity"]) >= 2
    assert SECRET not in "".join(
        path.read_text(errors="replace")
        for path in search.folder.rglob("*")
        if path.is_file() and "ckpt" not in path.name
    )


def test_tensorboard_shows_each_step_once(search: Search) -> None:
    for trial, epochs in zip(search.trials, (3, 1), strict=True):
        events = EventAccumulator(str(trial.folder / "tensorboard" / "version_0")).Reload()
        assert [event.step for event in events.Scalars("step/loss")] == list(range(epochs * STEPS))
        assert [event.step for event in events.Scalars("val_loss")] == [
            STEPS * epoch - 1 for epoch in range(1, epochs + 1)
        ]


# ------------------------------------------------------------------------------------------------------ single entries


@pytest.fixture
def run(tmp_path: Path) -> TrialContext:
    return a_run(tmp_path)


OWN = f"{__name__}.OwnCSVLogger"


@pytest.mark.parametrize(
    ("class_path", "given", "expected"),
    [
        ("lightning.pytorch.loggers.CSVLogger", {"save_dir": "/logs"}, {"name": "digits/T", "version": None}),
        ("lightning.pytorch.loggers.CSVLogger", {"save_dir": "logs"}, {"save_dir": "F/logs", "version": None}),
        ("lightning.pytorch.loggers.csv_logs.CSVLogger", {"save_dir": "/logs"}, {"name": "digits/T", "version": None}),
        ("pytorch_lightning.loggers.CSVLogger", {"save_dir": "/logs"}, {"name": "digits/T", "version": None}),
        (OWN, {"save_dir": "/logs", "prefix": "p"}, {"name": "digits/T", "version": None}),
        (
            "lightning.pytorch.loggers.CSVLogger",
            {"save_dir": "/logs", "name": "mine", "version": "v"},
            {"name": "mine/digits/T/v", "version": None},
        ),
        (
            "lightning.pytorch.loggers.CSVLogger",
            {"save_dir": "logs", "version": "v"},
            {"save_dir": "F/logs", "name": "v", "version": None},
        ),
        (
            "lightning.pytorch.loggers.CSVLogger",
            {"flush_logs_every_n_steps": 3},
            {"save_dir": "F", "name": "csv", "version": None},
        ),
        (
            "lightning.pytorch.loggers.TensorBoardLogger",
            {"save_dir": "/logs", "name": "mine", "version": "v", "sub_dir": "s"},
            {"name": "mine/digits/T", "version": "v"},
        ),
        ("itwinai.loggers.JSONLLogger", {"save_dir": "/logs", "name": None}, {"name": "digits/T", "version": 0}),
        ("itwinai.loggers.ProvenanceLogger", {"agent": "me"}, {"save_dir": "F", "name": "provenance", "version": 0}),
        ("lightning.pytorch.loggers.CometLogger", {"project": "p"}, {}),
        ("somewhere.that.is.not.there.Logger", {"save_dir": "logs"}, {}),
    ],
)
def test_what_the_user_gave_stays_and_what_is_one_place_for_all_gets_the_trial(
    class_path: str, given: dict[str, Any], expected: dict[str, Any], run: TrialContext
) -> None:
    before = {"class_path": class_path, "init_args": given}
    kept = json.dumps(before)
    filled = {
        name: value.replace("T", run.trial).replace("F", str(run.folder)) if isinstance(value, str) else value
        for name, value in expected.items()
    }
    assert logger_entries(before, run) == {"class_path": class_path, "init_args": {**given, **filled}}
    assert json.dumps(before) == kept


def test_short_paths_are_those_of_lightning(run: TrialContext) -> None:
    """By its name alone a class could not be told from one of ours any more, once that is imported."""
    entries = logger_entries(["CSVLogger", {"class_path": "JSONLLogger"}, {"class_path": "Unknown"}], run)
    assert [entry["class_path"] for entry in entries] == [
        "lightning.pytorch.loggers.CSVLogger",
        "itwinai.loggers.JSONLLogger",
        "Unknown",
    ]


def test_a_trial_writes_within_its_folder_or_one_of_its_name() -> None:
    """Two trials with one ``dirpath`` took each other's checkpoints for versions of their own."""
    saving = [{"class_path": "ModelCheckpoint", "init_args": {"dirpath": where}} for where in ("a/b", "/x", "s3://y/")]
    profiler = {"class_path": "SimpleProfiler", "init_args": {"dirpath": ".", "filename": "p"}}
    own = {"default_root_dir": "runs", "enable_checkpointing": False}
    base = {"seed_everything": 1, "trainer": {"callbacks": saving, "profiler": profiler, **own}}
    settings = Settings.from_mapping({"metric": "loss", "name": "digits", "space": {LR: {"uniform": [0, 1]}}})
    trainer = BaseConfig(base, settings).of_trial({}, "/searches/digits/t", False)["trainer"]
    assert [one["init_args"].get("dirpath") for one in (*trainer["callbacks"], trainer["profiler"])] == [
        *("/searches/digits/t/a/b", "/x/digits/t", "s3://y/digits/t"),
        *(None, "/searches/digits/t/."),  # None of what reports
    ]
    assert trainer["default_root_dir"] == "/searches/digits/t"
    assert trainer["enable_checkpointing"]  # what reports saves checkpoints, and refuses to be with none
    assert saving[0]["init_args"]["dirpath"] == "a/b"


def test_wandb_class_keeps_what_the_user_gave(run: TrialContext) -> None:
    given = {"project": "mine", "name": "net", "config": {"seed": 1}, "offline": True, "save_dir": "logs"}
    entry = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": given}
    filled = logger_entries({**entry, "dict_kwargs": {"group": "g", "notes": "n"}}, run)
    args = filled["init_args"]
    assert {name: args[name] for name in ("project", "name", "offline", "save_dir", "group", "resume")} == {
        **{name: given[name] for name in ("project", "offline", "save_dir")},
        "name": f"net {run.trial}",
        "group": "g",
        "resume": "allow",
    }
    assert args["config"]["seed"] == 1 and args["config"]["parameters"]["model"] == {"init_args": {"lr": 0.05}}
    assert filled["dict_kwargs"] == {"notes": "n"}
    ids = [logger_entries(entry, other)["init_args"]["id"] for other in (run, replace(run, search_id="another"))]
    assert args["id"] == ids[0] != ids[1]  # a search of the same name, in a folder that was emptied


def test_default_is_that_of_lightning(run: TrialContext) -> None:
    expected = {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": str(run.folder), "name": "tensorboard", "version": 0},
    }
    assert logger_entries(None, run) == logger_entries(True, run) == expected
    assert logger_entries(False, run) is False
    assert logger_entries([], run) == []


def test_names_and_classes_mix_and_a_name_counts_once(run: TrialContext) -> None:
    entries = logger_entries(["csv", " CSV", {"class_path": "CSVLogger", "init_args": {"save_dir": "x"}}, 5], run)
    folders = [entry if entry == 5 else entry["init_args"]["save_dir"] for entry in entries]
    assert folders == [str(run.folder), f"{run.folder}/x", 5]


def test_unknown_names_are_errors_with_the_nearest(run: TrialContext) -> None:
    with pytest.raises(ConfigurationError, match="no logger 'mlfow'.* Did you mean 'mlflow'"):
        logger_entries("csv,mlfow", run)


@pytest.mark.parametrize(
    ("class_path", "argument"), [("MLFlowLogger", "run_id"), ("WandbLogger", "id"), ("WandbLogger", "version")]
)
def test_one_run_for_all_trials_is_an_error(class_path: str, argument: str, run: TrialContext) -> None:
    with pytest.raises(ConfigurationError, match=f"given {argument}='abc', and all trials would write into that one"):
        logger_entries({"class_path": class_path, "init_args": {argument: "abc"}}, run)
