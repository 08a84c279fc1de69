"""Training functions that users give to Ray Tune themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray import tune

from itwinai.trials.checkpoint_reference import read_reference

pytestmark = pytest.mark.usefixtures("local_ray")


def train(config: dict[str, Any]) -> None:
    """Train as users do, with the callback."""
    import lightning as L

    from itwinai import ItwinaiTrainer
    from itwinai.callbacks import TuneReportCallback
    from tests.support.tuned import Points, Regression

    L.seed_everything(1)
    report = TuneReportCallback(config.get("metric", "val_loss"), checkpoint_every=1)
    trainer = ItwinaiTrainer(
        accelerator="cpu",
        devices=config.get("workers", 1),
        strategy=config.get("strategy", "auto"),
        max_epochs=4,
        split_batches=True,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[report],
    )
    module = Regression(lr=config["lr"], die_once=config.get("die_once", ""))
    trainer.fit(module, Points(), ckpt_path=report.resume_path)


def run(folder: Path, config: dict[str, Any], bundles: list[dict[str, float]], **options: Any) -> Any:
    """Search with Ray's own Tuner."""
    failures = options.pop("failures", 0)
    tuner = tune.Tuner(
        tune.with_resources(train, tune.PlacementGroupFactory(bundles)),
        param_space=config,
        tune_config=tune.TuneConfig(metric="val_loss", mode="min", **options),
        run_config=tune.RunConfig(
            name="search", storage_path=str(folder), verbose=0, failure_config=tune.FailureConfig(max_failures=failures)
        ),
    )
    return tuner.fit()


def test_a_function_reports_checkpoints_by_reference_and_is_stopped(tmp_path: Path) -> None:
    scheduler = tune.schedulers.ASHAScheduler(grace_period=1, reduction_factor=2, max_t=100)
    config = {"lr": tune.grid_search([0.2, 1e-5])}
    results = run(tmp_path, config, [{"CPU": 1}], scheduler=scheduler, max_concurrent_trials=1)
    assert not results.errors
    good, bad = results
    assert [len(one.metrics_dataframe) for one in (good, bad)] == [4, 1]
    with good.checkpoint.as_directory() as folder:
        path = read_reference(folder)
        assert [file.name for file in Path(folder).iterdir()] == ["itwinai-checkpoint.json"]
    assert path is not None and Path(path).exists()
    assert Path(path).is_relative_to(good.path)


def test_a_function_resumes_from_the_checkpoint_that_it_has_reported(tmp_path: Path) -> None:
    config = {"lr": 0.1, "die_once": str(tmp_path / "died")}
    (died,) = run(tmp_path / "a", config, [{"CPU": 1}], failures=1)
    (whole,) = run(tmp_path / "b", {"lr": 0.1}, [{"CPU": 1}])
    assert (tmp_path / "died").exists()
    assert died.metrics["val_loss"] == whole.metrics["val_loss"]
    steps = list(died.metrics_dataframe["step"])
    assert steps[-2:] == [12, 16]  # it went on from the checkpoint
    assert steps == [4, 8, 12, 16][-len(steps) :]  # Ray may not have fetched the first ones when the trial died


@pytest.mark.parametrize(("strategy", "bundles"), [("ddp", [{"CPU": 2}]), ("ray", [{}, {"CPU": 1}, {"CPU": 1}])])
def test_functions_with_two_workers(tmp_path: Path, strategy: str, bundles: list[dict[str, float]]) -> None:
    (two,) = run(tmp_path / "two", {"lr": 0.1, "workers": 2, "strategy": strategy}, bundles)
    (one,) = run(tmp_path / "one", {"lr": 0.1}, [{"CPU": 1}])
    assert not two.error
    assert list(two.metrics_dataframe["val_loss"]) == pytest.approx(list(one.metrics_dataframe["val_loss"]), rel=1e-5)


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    (missing,) = run(tmp_path / "a", {"lr": 0.1, "metric": "val_los"}, [{"CPU": 1}])
    assert "Did you mean 'val_loss'" in str(missing.error)
    (few,) = run(tmp_path / "b", {"lr": 0.1, "workers": 2, "strategy": "ray"}, [{"CPU": 1}])
    assert "resources for 1 workers" in str(few.error) and "PlacementGroupFactory" in str(few.error)
