"""`make_report`: the surrogate against its baselines, on years and cells that it has not seen."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from itwinai.errors import ConfigurationError
from itwinai_drought.baselines import Climatology, LinearWithMemory, persistence
from itwinai_drought.data.datamodule import DroughtDataModule
from itwinai_drought.data.dataset import CellWindows
from itwinai_drought.metrics import KGE, NSE, RMSE, Skill
from itwinai_drought.model import DroughtLSTM

Array = NDArray[np.floating]
Scores = dict[str, dict[str, float]]

PARTS = {
    "new cells, new years": ("test", "test"),
    "known cells, new years": ("train", "test"),
    "new cells, known years": ("test", "train"),
}
"""What is evaluated: cells and period, as the datamodule calls them."""

HEADLINE = "new cells, new years"

SURROGATE, WITHOUT_MAPS = "LSTM", "LSTM without maps"

ORDER = [
    "climatology of the neighbours",
    "the cell's own climatology",
    "persistence, 30 days",
    "linear with memory",
    WITHOUT_MAPS,
    SURROGATE,
]
"""The models, as tables and figures have them; the best is the last."""


@dataclass(frozen=True)
class Region:
    """The series of some cells, in memory.

    Attributes:
        cells: numbers of the cells.
        positions: row and column of each, shape (cells, 2).
        times: the days of the store.
        forcings: shape (forcings, cells, days).
        statics: shape (statics, cells).
        targets: shape (targets, cells, days).
    """

    cells: NDArray[np.int64]
    positions: NDArray[np.int64]
    times: NDArray[np.datetime64]
    forcings: Array
    statics: Array
    targets: Array

    @classmethod
    def read(cls, data: DroughtDataModule, cells: NDArray[np.int64]) -> Region:
        """Read the whole time of some cells."""
        store, options = data.store, data.options
        days = len(store.times)

        def series(names: Sequence[str]) -> Array:
            return np.array([[store.read(name, 0, days, int(cell)) for cell in cells] for name in names])

        maps = np.array([store.read_map(name).reshape(-1)[cells] for name in options.statics])
        positions = np.stack(np.divmod(cells, store.grid[1]), axis=1)
        return cls(cells, positions, store.times, series(options.forcings), maps, series(options.targets))


def train(config: Path, folder: Path, seed: int, flags: Sequence[str] = ()) -> Path:
    """Train with ``itwinai fit``, unless that is done already.

    Args:
        config: as for ``itwinai fit``.
        folder: of the run.
        seed: of the run.
        flags: more of them.

    Returns:
        Path of the last checkpoint.

    Raises:
        ConfigurationError: the run failed; what it printed is above.
    """
    checkpoint = folder / "last.ckpt"
    if not checkpoint.exists():
        run_itwinai("fit", "-c", config, f"--seed_everything={seed}", f"--trainer.default_root_dir={folder}", *flags)
        (folder / "checkpoints" / "last.ckpt").replace(checkpoint)
    return checkpoint


def run_itwinai(*arguments: object) -> None:
    """Run a command of itwinai.

    Raises:
        ConfigurationError: it failed; what it printed is above.
    """
    command = [sys.executable, "-m", "itwinai.cli.main", *map(str, arguments), "--trainer.logger=false"]
    if subprocess.run(command, check=False).returncode:
        raise ConfigurationError(f"This command failed: {' '.join(command)}")


def surrogate_series(module: DroughtLSTM, dataset: CellWindows, days: int, batch_size: int = 256) -> Array:
    """Return what a surrogate predicts, shape (targets, cells, days); NaN on days without prediction.

    Args:
        module: the surrogate.
        dataset: cells and windows.
        days: length of the store's time axis.
        batch_size: windows that are computed at once.
    """
    series = np.full((len(dataset.targets), len(dataset.cells), days), np.nan, dtype=np.float32)
    places = {int(cell): place for place, cell in enumerate(dataset.cells)}
    module.eval()
    with torch.inference_mode():
        for batch in DataLoader(dataset, batch_size):
            for name, predicted in module.predict_step(batch, 0).items():
                target = dataset.targets.index(name)
                for one, cell, day in zip(predicted.numpy(), batch["cell"], batch["day"], strict=True):
                    series[target, places[int(cell)], int(day) : int(day) + len(one)] = one
    return series


def score(predicted: Array, truth: Array, climatology: Array, targets: Sequence[str]) -> Scores:
    """Return the median scores over the cells, by target.

    Args:
        predicted: shape (targets, cells, days); NaN on days that do not count.
        truth: of the same shape.
        climatology: of the same shape: what anomalies and skill refer to.
        targets: their names.
    """
    scores: Scores = {}
    for target, name in enumerate(targets):
        x, y, mean = (torch.from_numpy(np.asarray(one[target], np.float64)) for one in (predicted, truth, climatology))
        y = torch.where(torch.isfinite(x), y, torch.nan)
        cells = torch.arange(len(x))
        found = {}
        for label, metric, arguments in (
            ("nse", NSE, (x, y, cells)),
            ("kge", KGE, (x, y, cells)),
            ("rmse", RMSE, (x, y, cells)),
            ("skill", Skill, (x, y, cells, mean)),
            ("nse of anomalies", NSE, (x - mean, y - mean, cells)),
        ):
            kept = metric(len(x))
            kept.update(*arguments)
            found[label] = float(kept.compute())
        scores[name] = found
    return scores


def baseline_series(train: Region, other: Region, days: slice, warm_up: int) -> dict[str, Array]:
    """Return what the baselines predict in some cells, each of shape (targets, cells, days).

    Args:
        train: the training cells.
        other: the cells to predict.
        days: the training days.
        warm_up: first days that the linear model is not fitted to.
    """
    times, of_train = train.times[days], train.targets[:, :, days]
    climatologies = [Climatology.fit(values, times, train.positions) for values in of_train]
    linear = LinearWithMemory.fit(
        train.forcings[:, :, days], train.statics, times, of_train, warm_up=warm_up, ridge=1e-5
    )
    return {
        "climatology of the neighbours": np.stack([one.predict(other.times, other.positions) for one in climatologies]),
        "persistence, 30 days": np.stack([persistence(values, 30) for values in other.targets]),
        "linear with memory": linear.predict(other.forcings, other.statics, other.times),
    }


def own_climatology(region: Region, days: slice) -> Array:
    """Return the climatology of each cell itself in the training years, shape (targets, cells, days)."""
    fitted = [Climatology.fit(values[:, days], region.times[days], region.positions) for values in region.targets]
    return np.stack([one.predict(region.times, region.positions, neighbours=1) for one in fitted])


def compare(data: DroughtDataModule, surrogates: Mapping[str, Sequence[tuple[Path, DroughtDataModule]]]) -> Any:
    """Return the scores of all models on all parts: ``{part: {model: [scores of each seed]}}``.

    Args:
        data: set up, with the maps.
        surrogates: checkpoints of each kind of surrogate, with the data that it takes.
    """
    targets, warm_up = data.options.targets, data.options.warm_up
    train_days = slice(data.periods["train"].start, data.periods["train"].stop)
    train = Region.read(data, data.cells["train"])
    results: dict[str, dict[str, list[Scores]]] = {}
    for part, (cells, period) in PARTS.items():
        region = train if cells == "train" else Region.read(data, data.cells[cells])
        counted = np.full(len(region.times), np.nan)
        counted[data.periods[period].start + warm_up : data.periods[period].stop] = 1
        climatology = own_climatology(region, train_days)
        models = {name: [series] for name, series in baseline_series(train, region, train_days, warm_up).items()}
        models["the cell's own climatology"] = [climatology]
        for name, trained in surrogates.items():
            models[name] = [
                surrogate_series(
                    DroughtLSTM.load_from_checkpoint(path, map_location="cpu"),
                    of_surrogate.part(cells, period),
                    len(region.times),
                )
                for path, of_surrogate in trained
            ]
        results[part] = {
            name: [score(series * counted, region.targets, climatology, targets) for series in several]
            for name, several in models.items()
        }
    return results


def write_scores(results: Any, targets: Sequence[str], folder: Path) -> str:
    """Write ``scores.json``, and return the tables as Markdown."""
    (folder / "scores.json").write_text(json.dumps(results, indent=1))
    lines = ["NSE, median over the held-out cells in the held-out years:", ""]
    lines += _table(
        "", targets, {name: [_text(results[HEADLINE][name], one, "nse") for one in targets] for name in ORDER}
    )
    labels = {"nse": "NSE", "nse of anomalies": "NSE of anomalies", "skill": "skill above climatology"}
    labels |= {"kge": "KGE", "rmse": "RMSE"}
    lines += ["", "More scores of the LSTM there:", ""]
    rows = {
        text: [_text(results[HEADLINE][SURROGATE], one, label) for one in targets] for label, text in labels.items()
    }
    lines += _table("", targets, rows)
    lines += ["", "NSE of the LSTM by what is new:", ""]
    lines += _table(
        "", targets, {part: [_text(results[part][SURROGATE], one, "nse") for one in targets] for part in results}
    )
    return "\n".join(lines) + "\n"


def _text(several: Sequence[Scores], target: str, label: str) -> str:
    values = [one[target][label] for one in several]
    digits = 4 if label == "rmse" else 3
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def _table(corner: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    lines = [f"| {corner} | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
    return lines + [f"| {name} | {' | '.join(values)} |" for name, values in rows.items()]
