"""The digits example: it is ordinary Lightning code, it learns, and its comparison reports what happened."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import lightning as L
import pytest
import torch
from lightning.pytorch.cli import LightningCLI

DIGITS = Path(__file__).parent.parent / "examples" / "digits"
MODULES = ("compare", "model", "data")
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Import the comparison as a script in its folder would see it."""
    monkeypatch.syspath_prepend(DIGITS)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("compare")
    for name in MODULES:
        sys.modules.pop(name, None)


def test_table_of_results_failures_and_missing_packages(compare: ModuleType) -> None:
    rows = [
        compare.Row("one process", 1, compare.Result(2.04, 4321.4, 0.08912, 0.9617)),
        compare.Row("ddp", 2, compare.Result(11.96, 812.0, 0.08912, 0.9617), difference=3.2e-7),
        compare.Row("deepspeed_stage_2", 2, error="RuntimeError: no port"),
        compare.Row("horovod", 2, missing="itwinai install horovod"),
    ]
    assert compare.format_table(rows).splitlines() == [
        "strategy           workers  seconds  samples/s  train loss  test acc.  weight diff.",
        "-----------------------------------------------------------------------------------",
        "one process              1      2.0       4321      0.0891      0.962             -",
        "ddp                      2     12.0        812      0.0891      0.962         3e-07",
        "deepspeed_stage_2        2  failed: RuntimeError: no port",
        "horovod                  2  not installed (itwinai install horovod)",
    ]
    assert compare.summarize(rows) == (
        "1 strategy, same result: largest weight difference 3e-07. "
        "1 strategy failed: deepspeed_stage_2. 1 strategy not installed: horovod."
    )
    assert not compare.succeeded(rows)


def test_summary_of_equal_and_of_different_weights(compare: ModuleType) -> None:
    result = compare.Result(1.0, 1.0, 0.1, 0.9)
    rows = [
        compare.Row("one process", 1, result),
        compare.Row("ddp", 2, result, 0.0),
        compare.Row("ray", 2, result, 9e-6),
    ]
    assert compare.summarize(rows) == "2 strategies, same result: largest weight difference 9e-06."
    assert compare.succeeded(rows)

    rows.append(compare.Row("horovod", 2, result, 2e-3))
    assert "horovod differs by 2e-03, allowed is 1e-05" in compare.summarize(rows)
    assert not compare.succeeded(rows)

    failed = [compare.Row("one process", 1, error="ValueError: x")]
    assert compare.summarize(failed).startswith("The run in one process failed")
    assert not compare.succeeded(failed)


def test_last_error_names_the_exception(compare: ModuleType) -> None:
    lines = ["Traceback (most recent call last):", "  File ...", "a.b.OtherError: first", "ValueError: last"]
    log = "\n".join([*lines, "Exception raised from C++", "bye", "", ""])
    assert compare.last_error(log) == "ValueError: last"
    assert compare.last_error("killed\n") == "killed"
    assert compare.last_error("") == "no output"


def test_missing_package_names_its_install_line(compare: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "find_spec", lambda name: None if name == "horovod" else name)
    assert compare.missing_package("ray_horovod") == "itwinai install horovod"
    assert compare.missing_package("ray_deepspeed") == compare.missing_package("ddp") == ""


def test_weight_difference_is_relative_and_sees_nan(compare: ModuleType) -> None:
    reference = {"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([0.5])}
    assert compare.weight_difference(reference, reference) == 0
    moved = reference | {"a": torch.tensor([1.5, 4.0])}
    assert compare.weight_difference(moved, reference) == pytest.approx(0.125)
    assert compare.weight_difference(reference | {"b": torch.tensor([torch.nan])}, reference) == float("inf")
    assert compare.weight_difference({}, reference) == float("inf")


@pytest.mark.parametrize("name", ["model.py", "data.py"])
def test_module_and_data_know_nothing_of_itwinai(name: str) -> None:
    imported = set()
    for node in ast.walk(ast.parse((DIGITS / name).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert "lightning" in imported
    assert "itwinai" not in imported


def test_example_learns_in_one_process(compare: ModuleType) -> None:
    L.seed_everything(42, verbose=False)
    model, data = compare.DigitsClassifier(), compare.DigitsDataModule(batch_size=64)
    trainer = L.Trainer(max_epochs=6, limit_val_batches=0, **QUIET)
    trainer.fit(model, data)
    assert trainer.global_step == 6 * 1280 // 64
    trainer.test(model, data, verbose=False)
    assert trainer.callback_metrics["test_accuracy"] > 0.9


def test_config_runs_with_the_stock_cli(
    compare: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["fit", "--config", str(DIGITS / "config.yaml"), "--trainer.fast_dev_run=true"]
    cli = LightningCLI(args=[*arguments, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"])
    assert type(cli.model) is compare.DigitsClassifier
    assert cli.trainer.global_step == 1
