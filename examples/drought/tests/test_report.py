"""The table compares all models on the same days and cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from itwinai_drought.data.datamodule import DroughtDataModule
from itwinai_drought.model import DroughtLSTM
from itwinai_drought.report import (
    HEADLINE,
    PARTS,
    SURROGATE,
    WITHOUT_MAPS,
    Region,
    compare,
    score,
    surrogate_series,
    write_scores,
)
from itwinai_drought.report_figures import draw_scores
from itwinai_drought.speed import measure_speed

from itwinai import ItwinaiTrainer

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def test_all_models_are_compared_and_the_surrogate_is_scored_on_its_own_days(
    options: dict[str, Any], tmp_path: Path
) -> None:
    surrogates = {}
    for name, statics in ((SURROGATE, options["statics"]), (WITHOUT_MAPS, [])):
        data = DroughtDataModule(**options | {"statics": statics})
        module = DroughtLSTM(hidden=4, cells=96, statics=statics)
        trainer = ItwinaiTrainer(accelerator="cpu", max_epochs=1, limit_train_batches=1, limit_val_batches=0, **QUIET)
        trainer.fit(module, datamodule=data)
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
        surrogates[name] = [(tmp_path / f"{name}.ckpt", data)]
    data = surrogates[SURROGATE][0][1]
    part, period = data.part("test", "test"), data.periods["test"]
    series = surrogate_series(DroughtLSTM.load_from_checkpoint(surrogates[SURROGATE][0][0]), part, 730)
    predicted = np.isfinite(series).all(axis=(0, 1))
    assert predicted[period.start + 30 : period.stop].all()
    assert predicted.sum() == len(period) - 30

    results = compare(data, surrogates)
    assert set(results) == set(PARTS)
    linear = results[HEADLINE]["linear with memory"][0]["vwc"]
    assert linear["nse"] > 0.5 > results[HEADLINE]["climatology of the neighbours"][0]["vwc"]["nse"]
    assert results[HEADLINE]["the cell's own climatology"][0]["q"]["skill"] == 0
    text = write_scores(results, data.options.targets, tmp_path)
    assert f"| linear with memory | {linear['nse']:.3f} |" in text
    assert (tmp_path / "scores.json").exists()
    draw_scores(results, data.options.targets, tmp_path / "scores.png")
    assert 5e3 < (tmp_path / "scores.png").stat().st_size < 200e3
    fast = measure_speed(module, sizes=(2,), days=20, repeats=1)
    assert fast[0].model > 0 < fast[0].surrogate


def test_scores_count_only_predicted_days(options: dict[str, Any]) -> None:
    data = DroughtDataModule(**options)
    data.setup("test")
    region = Region.read(data, data.cells["test"])
    truth = region.targets
    flawed = truth.copy()
    flawed[:, :, :100] += 9
    mean = np.broadcast_to(truth.mean(axis=2, keepdims=True), truth.shape)
    assert score(flawed, truth, mean, data.options.targets)["q"]["nse"] < 0.9
    flawed[:, :, :100] = np.nan
    found = score(flawed, truth, mean, data.options.targets)
    assert {label: round(value, 6) for label, value in found["q"].items()} == {
        "nse": 1,
        "kge": 1,
        "rmse": 0,
        "skill": 1,
        "nse of anomalies": 1,
    }
