"""From a raw store to maps of drought by one command."""

from __future__ import annotations

from pathlib import Path

import pytest

from itwinai.cli.main import main
from itwinai.pipelines import Pipeline

EXAMPLE = Path(__file__).parents[1]
SMALL = {
    "steps.store.lat": 8,
    "steps.store.lon": 8,
    "steps.train.model.cells": 64,
    "steps.train.model.hidden": 4,
    "steps.train.trainer.max_epochs": 1,
    "steps.train.data.window_fraction": 0.0005,
    "steps.train.data.block": 2,
    "steps.train.data.buffer": 0,
}


def test_from_a_raw_store_to_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(EXAMPLE)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    pipeline = Pipeline.from_yaml("configs/pipeline.yaml", SMALL, tmp_path / "drought")
    lines: list[str] = []
    result = pipeline.run(jobs=2, say=lines.append)
    assert set(result.ran) == {"store", "train", "test", "predict", "grid", "indices", "predicted-indices", "maps"}
    assert {path.name for path in result.outputs["maps"]} >= {"scores.png", "drought.png", "drought_series.png"}
    assert all(path.stat().st_size > 10_000 for path in result.outputs["maps"])
    assert "test_nse_q" in result.outputs["test"]["metrics"]
    assert lines.index("indices: runs") < lines.index("predict: runs")  # beside the training

    flags = [f"--{path}={value}" for path, value in SMALL.items()]
    command = ["run", "configs/pipeline.yaml", "--folder", str(tmp_path / "drought"), "--dry-run", *flags]
    assert main([*command, "--steps.maps.days=365"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2].split() == ["maps", "runs", "days", "730", "→", "365"]
    assert printed[-1] == "8 steps: 1 to run, 7 cached"
