"""What a benchmark is asked for, and the runs that come of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from itwinai.benchmark import runner
from itwinai.benchmark.records import SINGLE, Cell
from itwinai.benchmark.runner import interleaved
from itwinai.benchmark.runs import progress
from itwinai.benchmark.runs.progress import plan_text
from itwinai.benchmark.runs.run_config import RunConfigs, most_on_a_node, spread_over_nodes
from itwinai.benchmark.settings import Settings, cells_of
from itwinai.errors import ConfigurationError

CONFIG: dict[str, Any] = {
    "seed_everything": True,
    "trainer": {
        "strategy": "auto",
        "devices": "auto",
        "num_nodes": 1,
        "max_epochs": 3,
        "precision": None,
        "logger": None,
        "cpu_threads": None,
        "callbacks": [
            {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val_loss"}},
            {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"},
            {"class_path": "itwinai.callbacks.ModelCheckpoint"},
        ],
    },
    "model": {"class_path": "m.Model", "init_args": {"lr": 0.1}},
}


def settings(**changed: Any) -> Settings:
    return Settings(**{"strategies": ("ddp", "ray"), "workers": (1, 2, 4), **changed})


def test_cells_are_all_combinations_and_the_baseline() -> None:
    cells = cells_of(settings(axes={"trainer.precision": ["32-true", "bf16-mixed"]}))
    assert len(cells) == len(set(cells)) == 2 * (1 + 2 * 3)
    assert cells[0] == Cell(SINGLE, 1, "strong", (("trainer.precision", "32-true"),))
    assert {cell.axes for cell in cells if cell.strategy == SINGLE} == {
        (("trainer.precision", "32-true"),),
        (("trainer.precision", "bf16-mixed"),),
    }


def test_one_worker_is_measured_once_for_both_scalings() -> None:
    cells = cells_of(settings(scalings=("weak", "strong")))
    assert Counter((cell.workers, cell.scaling) for cell in cells if cell.strategy == "ddp") == Counter(
        [(1, "weak"), (2, "weak"), (4, "weak"), (2, "strong"), (4, "strong")]
    )


def test_another_baseline_needs_no_single_process() -> None:
    assert all(cell.strategy != SINGLE for cell in cells_of(settings(baseline="ddp", workers=(2, 4))))


def test_repeats_are_interleaved_in_an_order_of_their_own() -> None:
    cells = cells_of(settings())
    runs = interleaved(cells, 3, seed=1)
    blocks = [runs[start : start + len(cells)] for start in range(0, len(runs), len(cells))]
    for repeat, block in enumerate(blocks):
        assert {number for _, number in block} == {repeat}
        assert sorted(str(cell) for cell, _ in block) == sorted(map(str, cells))
    assert len({tuple(cell for cell, _ in block) for block in blocks}) == 3
    assert runs == interleaved(cells, 3, seed=1)  # a resumed benchmark has the same runs


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"strategies": ()}, "--strategies needs"),
        ({"workers": (1, 2, 1)}, "--workers has 1 twice"),
        ({"workers": (0, 1)}, "--workers must be at least 1; got 0"),
        ({"scalings": ("strang",)}, "--scaling=strang is unknown"),
        ({"repeats": 0}, "--repeats must be at least 1; got 0"),
        ({"warmup": 0}, "--warmup must be at least 1; got 0"),
        ({"steps": 0}, "--steps must be at least 1; got 0"),
        ({"threads": 0}, "--threads must be at least 1; got 0"),
        ({"seconds": -1.0}, "--seconds must be at least 0; got -1.0"),
        ({"limit": 0.0}, "--limit must be above 0 seconds; got 0.0"),
        ({"baseline": "horovod"}, "--baseline=horovod is not among --strategies"),
        ({"axes": {"trainer.precision": []}}, "--axis trainer.precision needs"),
        ({"axes": {"trainer.precision": [32, 32]}}, "has 32 twice"),
    ],
)
def test_what_makes_no_sense_is_said(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        settings(**changed)


def test_a_run_trains_and_does_nothing_else() -> None:
    config = RunConfigs(CONFIG, seed=3).of(Cell("ddp", 4, "strong"), "/folder")
    trainer = config["trainer"]
    assert (trainer["strategy"], trainer["devices"], trainer["num_nodes"]) == ("ddp", 4, 1)
    assert trainer["split_batches"] is True
    assert [one["class_path"].rpartition(".")[2] for one in trainer["callbacks"]] == ["LearningRateMonitor"]
    assert trainer["limit_val_batches"] == 0 and trainer["logger"]["class_path"].endswith("DummyLogger")
    assert trainer["max_epochs"] == 3  # schedulers are made for the user's run
    assert config["seed_everything"] == 3  # True would be another one in each run
    assert CONFIG["trainer"]["strategy"] == "auto" and len(CONFIG["trainer"]["callbacks"]) == 3
    same = RunConfigs(CONFIG, threads=2)
    cells = [Cell(SINGLE, 1), Cell("ddp", 4), Cell("ray", 2)]
    assert [same.of(cell, "/folder")["trainer"]["cpu_threads"] for cell in cells] == [2, 2, 2]
    varied = Cell("ddp", 2, axes=(("trainer.cpu_threads", "3"),))
    assert same.of(varied, "/folder")["trainer"]["cpu_threads"] == 3


@pytest.mark.parametrize(
    ("given", "trainer", "slurm", "resume", "variables", "expected"),
    [
        ({}, {}, None, False, {}, 2),  # 8 cores, 4 workers at most
        ({"workers": (16,)}, {}, None, False, {}, 1),
        ({"threads": 3}, {"cpu_threads": 5}, None, True, {"OMP_NUM_THREADS": "6"}, 3),
        ({}, {"cpu_threads": 5}, None, True, {"OMP_NUM_THREADS": "6"}, 5),
        ({}, {}, None, False, {"OMP_NUM_THREADS": "6"}, 6),
        ({}, {}, None, True, {}, 7),  # as before
        ({}, {}, {"cpus-per-task": "12"}, False, {}, 12),
        ({}, {}, {"partition": "gpu"}, False, {}, 1),
    ],
)
def test_threads_are_the_same_in_all_cells(
    given: dict[str, Any],
    trainer: dict[str, Any],
    slurm: dict[str, str] | None,
    resume: bool,
    variables: dict[str, str],
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / runner.FINGERPRINT).write_text('{"threads": "7"}')
    monkeypatch.setattr(runner, "available_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = {**CONFIG, "trainer": {**CONFIG["trainer"], **trainer}}
    benchmark = runner.Benchmark(settings(**given), config, tmp_path, "b", slurm=slurm)
    assert benchmark.threads(resume) == expected


def test_more_threads_than_cores_are_warned_of_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "available_cores", lambda: 8)
    text = plan_text(settings(), 1, 1, tmp_path, 4, 4, False)
    assert text.splitlines()[-1].startswith("Warning: 4 workers compute with 16 threads on 8 cores")
    assert text.endswith("set --threads 2.")
    assert "Warning" not in plan_text(settings(), 1, 1, tmp_path, 2, 4, False)
    assert "Warning" not in plan_text(settings(), 1, 1, tmp_path, 4, 4, True)  # the nodes of a job are others


def test_most_workers_of_a_node() -> None:
    assert most_on_a_node([1, 2, 4], None) == 4
    assert most_on_a_node([4, 6], 4) == 4 and most_on_a_node([6], 4) == 3


def test_an_axis_wins_over_all_else() -> None:
    configs = RunConfigs(CONFIG)
    cell = Cell(
        SINGLE, 1, "weak", (("model.lr", "0.5"), ("trainer.logger", "csv"), ("trainer.precision", "bf16-mixed"))
    )
    config = configs.of(cell, "/folder")
    assert config["model"]["init_args"]["lr"] == 0.5
    assert config["trainer"]["logger"] == "csv"
    assert (config["trainer"]["strategy"], config["trainer"]["split_batches"]) == ("auto", False)
    with pytest.raises(ConfigurationError, match="nothing at 'model.rl'.*Did you mean"):
        configs.of(Cell("ddp", 1, "weak", (("model.rl", "0.5"),)), "/folder")


@pytest.mark.parametrize(
    ("workers", "most", "expected"),
    [(4, None, (1, 4)), (4, 4, (1, 4)), (8, 4, (2, 4)), (6, 4, (2, 3)), (7, 4, (7, 1)), (2, 1, (2, 1))],
)
def test_workers_are_spread_evenly_over_nodes(workers: int, most: int | None, expected: tuple[int, int]) -> None:
    assert spread_over_nodes(workers, most) == expected
