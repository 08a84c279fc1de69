"""Whole searches on a real Ray: what they find, what they leave, and what becomes of trials that fail."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from itwinai.config.lightning_cli import command_line
from itwinai.errors import ConfigurationError, MissingPackageError, ResourceError, TrialError
from itwinai.trials.records import TrialRecord
from itwinai.tune import SearchResult, Tuner
from itwinai.tune.search_journal import read_search

pytestmark = pytest.mark.usefixtures("local_ray")

LR, WIDTH = "model.init_args.lr", "model.init_args.width"


def config(epochs: int = 3, **model: Any) -> dict[str, Any]:
    """Return a config as `itwinai fit` takes it."""
    return {
        "seed_everything": 1,
        "trainer": {"accelerator": "cpu", "max_epochs": epochs, "logger": False},
        "model": {"class_path": "tests.support.tuned.Regression", "init_args": model},
        "data": {"class_path": "tests.support.tuned.Points"},
    }


def search(folder: Path, given: Any = None, *, metric: Any = "val_loss", **settings: Any) -> SearchResult:
    """Search quietly."""
    return Tuner(given or config(), metric=metric, storage=str(folder), quiet=True, **settings).fit()


def trial(result: SearchResult, path: str, value: Any) -> TrialRecord:
    """Return the trial with a value of a parameter."""
    (found,) = [one for one in result.record.trials if one.parameters[path] == value]
    return found


def last(one: TrialRecord, metric: str = "val_loss") -> float:
    """Return the last value that a trial has reported."""
    return one.reports[-1].metrics[metric]


def fit_with(given: dict[str, Any], folder: Path) -> float:
    """Train as `itwinai fit` does, and return the loss."""
    given = {**given, "trainer": {**given["trainer"], "default_root_dir": str(folder), "enable_checkpointing": False}}
    cli = command_line(given, run=False, save_config_callback=None)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return float(cli.trainer.callback_metrics["val_loss"])


def test_a_search_and_what_it_leaves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = {"model.lr": {"loguniform": [1e-3, 0.5]}, "model.width": {"choice": [2, 4]}}
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)]
    result = Tuner(config(), space, metric="val_loss", num_samples=5, storage=str(tmp_path), name="first").fit()
    trials = result.record.trials
    assert [one.number for one in trials] == list(range(5))
    assert {one.status for one in trials} == {"finished"}
    assert [len(one.reports) for one in trials] == [3] * 5
    assert len({one.parameters[LR] for one in trials}) == 5
    assert result.best_value == min(report.metrics["val_loss"] for one in trials for report in one.reports)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)] == handlers
    # The best config gives the very same number, and the checkpoint is the one of that report.
    folder = tmp_path / "first"
    best = yaml.safe_load((folder / "best_config.yaml").read_text())
    assert best == result.best_config
    assert best["model"]["init_args"][LR.rpartition(".")[2]] == result.best_parameters[LR]
    assert fit_with(best, tmp_path) == result.best_value
    assert result.best_checkpoint is not None and Path(result.best_checkpoint).exists()
    rows = list(csv.DictReader((folder / "leaderboard.csv").open()))
    assert [int(row["trial"]) for row in rows] == [one.number for one in result.record.ranked()]
    assert "first" in (folder / "report.html").read_text()
    # What a trial has printed and what it was told is in its folder, and that carries its name.
    for one in trials:
        assert Path(one.folder).name == one.name
        assert one.name.startswith(f"00{one.number}_lr=")
        assert "max_epochs=3" in (Path(one.folder) / "output.log").read_text()
        assert yaml.safe_load((Path(one.folder) / "config.yaml").read_text())["model"]["init_args"]["width"] in (2, 4)
    printed = capsys.readouterr().out
    assert f"best values  lr={json.dumps(result.best_parameters[LR])}, width=" in printed  # not rounded
    assert "at once     4 trials: the CPUs are the limit" in printed
    assert "rank  trial" in printed and "best_config.yaml" in printed
    # Another one of this name would overwrite it.
    with pytest.raises(ConfigurationError, match="There is a search in .*first already"):
        search(tmp_path, space=space, name="first")


def test_asha_stops_bad_trials(tmp_path: Path) -> None:
    lrs = [0.2, 1e-5, 2e-5, 3e-5, 4e-5, 5e-5]
    result = search(
        tmp_path,
        config(epochs=8, decay=1.0),
        space={LR: {"grid": lrs}},
        num_samples=1,
        scheduler={"asha": {"grace_period": 1, "reduction_factor": 2}},
        max_concurrent=2,
    )
    good = trial(result, LR, 0.2)
    assert (good.status, len(good.reports)) == ("finished", 8)
    stopped = [one for one in result.record.trials if one.status == "stopped"]
    assert len(stopped) >= 3
    assert all(len(one.reports) < 8 for one in stopped)
    assert result.best == good


def test_pbt_copies_weights_and_the_optimizer_uses_the_changed_rate(tmp_path: Path) -> None:
    result = search(
        tmp_path,
        config(epochs=8, decay=1.0),
        space={LR: {"loguniform": [1e-5, 0.3]}},
        start_with=[{LR: lr} for lr in (0.1, 1e-5, 2e-5, 3e-5)],
        num_samples=4,
        scheduler={"pbt": {"perturbation_interval": 2, "quantile_fraction": 0.5, "synch": True}},
    )
    copies = [one for one in result.record.trials if last(one, "origin") != one.reports[0].metrics["origin"]]
    assert copies
    for one in copies:
        assert last(one, "origin") in [other.reports[0].metrics["origin"] for other in result.record.trials]
        # It trains with the rate that it was given, neither its first one nor that of the copied optimizer.
        best = one.best_report(result.record.objectives[0])
        assert best is not None
        assert best.metrics["lr"] == pytest.approx(one.parameters[LR])
        assert best.metrics["lr"] != pytest.approx(one.reports[0].metrics["lr"])
    assert [one.reports[-1].number for one in result.record.trials] == [8] * 4


def test_two_workers_under_every_strategy_reach_what_one_process_does(tmp_path: Path) -> None:
    strategies = ["ddp", "deepspeed", "horovod", "ray"]
    two = config()
    two["data"]["init_args"] = {"batch_size": 4}
    result = search(tmp_path, two, space={"trainer.strategy": {"grid": strategies}}, num_samples=1, workers_per_trial=2)
    assert [one.error for one in result.record.trials] == [""] * 4
    single = config()
    single["data"]["init_args"] = {"batch_size": 8}
    expected = fit_with(single, tmp_path)
    for strategy in strategies:
        assert last(trial(result, "trainer.strategy", strategy)) == pytest.approx(expected, rel=1e-5)
    assert result.best_config is not None
    assert result.best_config["trainer"]["devices"] == 2


def test_ray_workers_are_kept_for_the_next_trial_under_every_strategy(tmp_path: Path) -> None:
    result = search(
        tmp_path,
        space={"trainer.strategy": {"grid": ["ray", "ray_deepspeed", "ray_horovod"]}, LR: {"grid": [0.1, 0.2]}},
        num_samples=1,
        workers_per_trial=2,
        max_concurrent=1,
    )
    assert [(one.status, one.failures) for one in result.record.trials] == [("finished", 0)] * 6
    seconds = [one.seconds for one in result.record.trials]  # two trials per strategy
    assert max(seconds[1::2]) < min(seconds[::2])  # without the imports


def test_a_trial_that_is_killed_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    space = {LR: {"choice": [0.1]}}
    died = search(tmp_path, config(epochs=4, die_once=str(tmp_path / "died")), space=space, num_samples=1)
    whole = search(tmp_path, config(epochs=4), space=space, num_samples=1, name="whole")
    (one,), (other,) = died.record.trials, whole.record.trials
    assert (one.status, one.failures, len(one.reports)) == ("finished", 1, 4)
    assert [report.metrics["val_loss"] for report in one.reports] == [r.metrics["val_loss"] for r in other.reports]
    output = (Path(one.folder) / "output.log").read_text()
    assert "Restored all states from the checkpoint" in output


def test_a_trial_that_fails_is_recorded_and_ends_nothing(tmp_path: Path) -> None:
    failing = "model.init_args.fail_at"
    result = search(tmp_path, space={failing: {"grid": [-1, 1]}}, num_samples=1)
    bad = trial(result, failing, 1)
    assert (bad.status, bad.failures) == ("failed", 2)
    assert "ValueError: as the test wants it" in bad.error
    assert len(bad.reports) == 1
    assert trial(result, failing, -1).status == "finished"
    assert "as the test wants it" in (tmp_path / "search" / "leaderboard.csv").read_text()
    assert "as the test wants it" in (Path(bad.folder) / "output.log").read_text()


def test_a_search_in_which_all_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(TrialError, match="no trial has succeeded.*ValueError: as the test wants it"):
        search(tmp_path, config(fail_at=0), space={LR: {"uniform": [0.1, 0.2]}}, num_samples=2, max_failures=0)


def test_a_metric_that_is_never_logged_ends_the_search_in_a_few_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"storage": str(tmp_path), "space": {LR: {"uniform": [0.1, 0.2]}}, "num_samples": 40}
    with pytest.raises(TrialError, match=r"needs the metric 'valloss'.*Did you mean 'val_loss'") as raised:
        Tuner(config(), metric="valloss", **settings).fit()
    text = capsys.readouterr().out + f"error: {raised.value}"
    assert text.count("needs the metric") == 1, text
    assert len(text.splitlines()) <= 9, text  # one of them says how far it is, if it takes long
    record = read_search(tmp_path / "search")
    assert len(record.trials) < 20
    assert "failed" in {one.status for one in record.trials} <= {"failed", "stopped"}
    assert "needs the metric 'valloss'" in (tmp_path / "search" / "leaderboard.csv").read_text()


def test_two_objectives(tmp_path: Path) -> None:
    result = search(
        tmp_path,
        metric=["val_loss", "late"],
        mode=["min", "max"],
        space={LR: {"uniform": [0.01, 0.2]}, "trainer.max_epochs": {"choice": [1, 2, 3]}},
        search="optuna",
        num_samples=6,
    )
    front = result.record.pareto_front()
    assert front
    assert max(last(one, "late") for one in result.record.trials) in [last(one, "late") for one in front]
    assert result.best_config is not None


def test_overrides_and_limits_hold_for_trials_only(tmp_path: Path) -> None:
    checkpoint = {"dirpath": "own/checkpoints", "filename": "best"}
    saving = [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": checkpoint}]
    result = search(
        tmp_path,
        config(epochs=6),
        space={LR: {"grid": [0.1, 0.2]}},
        num_samples=1,
        overrides={"trainer.max_epochs": 4, "trainer.callbacks": saving},
        max_reports=2,
        report_on="epoch",
    )
    for one in result.record.trials:  # and not together in the working folder
        assert [path.name for path in (Path(one.folder) / "own/checkpoints").iterdir()] == ["best.ckpt"]
    assert [len(one.reports) for one in result.record.trials] == [2, 2]
    assert {one.status for one in result.record.trials} == {"stopped"}
    assert result.best_config is not None and result.best_config["trainer"]["max_epochs"] == 6


def test_a_function_is_searched_over(tmp_path: Path) -> None:
    offset = 2.0

    def train(parameters: dict[str, Any]) -> None:
        from itwinai import ItwinaiTrainer
        from itwinai.callbacks import TuneReportCallback
        from tests.support.tuned import Points, Regression

        report = TuneReportCallback("val_loss", checkpoint_every=1)
        trainer = ItwinaiTrainer(
            accelerator="cpu", devices=1, max_epochs=int(offset), logger=False, callbacks=[report],
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Regression(lr=parameters["lr"]), Points(), ckpt_path=report.resume_path)

    result = search(tmp_path, train, space={"lr": {"grid": [0.05, 0.1]}}, num_samples=1)
    assert [len(one.reports) for one in result.record.trials] == [2, 2]
    assert result.best_config is None
    assert result.best_checkpoint is not None and Path(result.best_checkpoint).exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"space": {"model.lrr": {"uniform": [0, 1]}}},
            r"nothing at 'model\.lrr' .* Did you mean 'model\.init_args\.lr'",
        ),
        ({"space": {"model.lr": {"unifrom": [0, 1]}}}, "uniform"),
        ({"space": {"model.lr": {"uniform": [1, 0]}}}, "lr"),
        ({"space": {"model.lr": {"choice": ["sgd"]}}}, r"'sgd' for 'model\.init_args\.lr', which does not fit"),
        ({"overrides": {"trainer.max_epoch": 3}}, r"Did you mean 'trainer\.max_epochs'"),
        ({"overrides": {"trainer.max_epochs": "three"}}, r"'three' for 'trainer\.max_epochs'"),
        ({"num_sample": 3}, "Did you mean 'num_samples'"),
        ({"strategy": "ddq"}, r"tune\.strategy: There is no strategy named 'ddq'\. Did you mean 'ddp'"),
        ({"mode": "lowest"}, "'min' or 'max'"),
        ({"workers_per_trial": 0}, "at least 1"),
        ({"num_samples": -1}, "give a time_budget"),
        ({"time_budget": "soon"}, "write '90s'"),
        ({"space": {"model.lr": {"quniform": [8, 32, 8]}, "model.width": {"uniform": [8, 32]}}}, "a whole number"),
        ({"scheduler": "ahsa"}, "asha"),
        ({"search": "optna"}, "optuna"),
        ({"start_with": True, "space": {"model.lr": {"uniform": [1, 2]}}}, "lr"),
    ],
)
def test_invalid_settings_are_errors_before_any_trial(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        search(tmp_path, **{"space": {"model.lr": {"uniform": [0.1, 1]}}, **settings})
    assert not (tmp_path / "search").exists()


def test_resources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="64"):
        search(tmp_path, space={LR: {"uniform": [0, 1]}}, resources_per_worker={"CPU": 64})


def test_a_searcher_whose_package_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingPackageError, match="hyperopt"):
        search(tmp_path, space={LR: {"uniform": [0.1, 1]}}, search="hyperopt")
