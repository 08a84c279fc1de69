"""The examples: they are ordinary Lightning code, they learn, and what they report is so."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.cli import LightningCLI

from itwinai import ItwinaiTrainer

EXAMPLES = Path(__file__).parent.parent / "examples"
DIGITS = EXAMPLES / "digits"
STREAMFLOW = EXAMPLES / "streamflow"
GAN = EXAMPLES / "gan"
TEXTMODEL = EXAMPLES / "textmodel"
MODULES = ("compare", "model", "data", "basins")
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
    with fresh_modules(monkeypatch, DIGITS):
        yield importlib.import_module("compare")


@pytest.fixture
def streamflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Import the modules of the streamflow example as a config in its folder would see them."""
    with fresh_modules(monkeypatch, STREAMFLOW):
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in ("basins", "model", "data")})


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread: several wait for each other in each of an LSTM's many small steps."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextmanager
def fresh_modules(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """Let an example's folder be where modules come from; the examples use the same names for theirs."""
    monkeypatch.syspath_prepend(folder)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


def test_table_of_results_failures_and_missing_packages(compare: ModuleType) -> None:
    rows = [
        compare.Row("one process", 1, compare.Result(0.04, 1.777, 7680, 0.08912, 0.9617)),
        compare.Row("ddp", 2, compare.Result(2.46, 9.46, 7680, 0.08912, 0.9617), difference=3.2e-7),
        compare.Row("deepspeed_stage_2", 2, error="RuntimeError: no port"),
        compare.Row("horovod", 2, missing="itwinai install horovod"),
    ]
    assert compare.format_table(rows).splitlines() == [
        "strategy           workers  start s  train s  samples/s  train loss  test acc.  weight diff.",
        "--------------------------------------------------------------------------------------------",
        "one process              1      0.0     1.78       4322      0.0891      0.962             -",
        "ddp                      2      2.5     9.46        812      0.0891      0.962         3e-07",
        "deepspeed_stage_2        2  failed: RuntimeError: no port",
        "horovod                  2  not installed (itwinai install horovod)",
    ]
    assert compare.summarize(rows) == (
        "1 strategy, same result: largest weight difference 3e-07. "
        "1 strategy failed: deepspeed_stage_2. 1 strategy not installed: horovod."
    )
    assert not compare.succeeded(rows)


def test_summary_of_equal_and_of_different_weights(compare: ModuleType) -> None:
    result = compare.Result(1.0, 1.0, 64, 0.1, 0.9)
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


def test_missing_packages_are_installed_by_their_lines(
    compare: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compare, "find_spec", lambda name: None if name in ("horovod", "ray") else name)
    for command in ("pip", "itwinai"):
        (tmp_path / command).write_text(f'#!/bin/sh\necho {command} "$@" >> "{tmp_path}/called"\n')
        (tmp_path / command).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    compare.install_missing(compare.ALL_STRATEGIES)
    called = (tmp_path / "called").read_text().splitlines()
    assert called == ["itwinai install horovod --cached-only", "pip install itwinai[ray]"]


def test_weight_difference_is_relative_and_sees_nan(compare: ModuleType) -> None:
    reference = {"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([0.5])}
    assert compare.weight_difference(reference, reference) == 0
    moved = reference | {"a": torch.tensor([1.5, 4.0])}
    assert compare.weight_difference(moved, reference) == pytest.approx(0.125)
    assert compare.weight_difference(reference | {"b": torch.tensor([torch.nan])}, reference) == float("inf")
    assert compare.weight_difference({}, reference) == float("inf")


@pytest.mark.parametrize("folder", [DIGITS, STREAMFLOW, GAN, TEXTMODEL], ids=lambda folder: folder.name)
@pytest.mark.parametrize("name", ["model.py", "data.py"])
def test_module_and_data_know_nothing_of_itwinai(folder: Path, name: str) -> None:
    imported = set()
    for node in ast.walk(ast.parse((folder / name).read_text())):
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


def test_basins_are_the_same_each_time_and_keep_their_water(streamflow: SimpleNamespace) -> None:
    first, again, other = (streamflow.basins.generate_basins(8, 3, seed) for seed in (0, 0, 1))
    assert first.discharge.shape == first.weather.precipitation.shape == (3 * 365, 8)
    assert np.array_equal(first.discharge, again.discharge)
    assert not np.array_equal(first.discharge, other.discharge)
    for basins in (first, other):
        assert basins.discharge.min() > 0
        share = basins.discharge.sum(axis=0) / basins.weather.precipitation.sum(axis=0)
        assert np.all((share > 0.1) & (share < 0.9)), "some water leaves as discharge, some evaporates"


@pytest.mark.parametrize(("temperature", "first"), [(10.0, 100), (-5.0, 200)], ids=["rain", "snow"])
def test_discharge_comes_after_rain_and_after_thaw(streamflow: SimpleNamespace, temperature: float, first: int) -> None:
    basins = streamflow.basins
    parameters = {name: np.array([low, high]) for name, (low, high) in basins.RANGES.items()}
    warmth = np.full((1500, 2), 10.0)
    warmth[:200] = temperature
    dry, wet = np.zeros((1500, 2)), np.zeros((1500, 2))
    wet[100] = 200.0
    without, with_rain = (
        basins.simulate_discharge(basins.Weather(fallen, warmth, np.zeros((1500, 2))), parameters)
        for fallen in (dry, wet)
    )
    more = with_rain - without
    assert np.all(more[:first] == 0)
    assert np.all(more[first : first + 60].sum(axis=0) > 20)
    # Nothing evaporates here: what the soil does not keep arrives in the end, and not a drop more.
    assert np.all((more.sum(axis=0) > 40) & (more.sum(axis=0) <= 200))


def test_windows_hold_the_days_that_they_should(streamflow: SimpleNamespace) -> None:
    data = streamflow.data.StreamflowDataModule(basins=3, days=100, warm_up=40, windows=5)
    data.setup("fit")
    years = streamflow.data
    basins = streamflow.basins.generate_basins(3, years.TRAIN_YEARS + years.VAL_YEARS + years.TEST_YEARS, 0)
    train_end, val_end = years.TRAIN_YEARS * 365, (years.TRAIN_YEARS + years.VAL_YEARS) * 365
    assert len(data.train) == 3 * 5
    assert data.train.starts[0] == 0
    assert train_end - 10 < data.train.starts[-1] + 100 <= train_end
    for windows, first, end in ((data.val, train_end, val_end), (data.test, val_end, len(basins.discharge))):
        predicted = [day for start in windows.starts for day in range(start + 40, start + 100)]
        assert predicted == list(range(first, first + len(predicted)))
        assert end - 60 < predicted[-1] < end

    inputs, discharge, scale, basin = data.val[len(data.val.starts) + 1]  # the second window of the second basin
    start = data.val.starts[1]
    assert inputs.shape == (100, 12) and int(basin) == 1
    assert np.allclose(discharge, basins.discharge[start + 40 : start + 100, 1], rtol=1e-6)
    root = np.sqrt(basins.discharge[:train_end, 1])
    assert scale.tolist() == pytest.approx([root.mean(), root.std()])
    fallen = np.sqrt(basins.weather.precipitation[start : start + 100, 1])
    assert np.corrcoef(inputs[:, 0], fallen)[0, 1] == pytest.approx(1)
    assert np.allclose(np.ptp(inputs[:, 3:].numpy(), axis=0), 0), "the attributes of a basin do not change"


def test_efficiency_is_the_median_of_the_basins(streamflow: SimpleNamespace) -> None:
    nse = streamflow.model.NashSutcliffe(basins=4)
    observed = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [1.0, 2.0, 3.0]])
    perfect, mean = observed[0], torch.full((3,), 4.0)
    nse.update(torch.stack([perfect, mean]), observed[:2], torch.tensor([0, 3]))
    nse.update(torch.tensor([[2.0, 3.0, 4.0]]), observed[2:], torch.tensor([1]))  # errors of 1: 1 - 3 / 2
    assert float(nse.compute()) == pytest.approx(0.0)  # of 1, -0.5 and 0; the third basin was never seen
    nse.update(perfect[None] * 2, observed[1:2], torch.tensor([3]))  # now 1 - 8 / 16
    assert float(nse.compute()) == pytest.approx(0.5)


def test_streamflow_learns_in_one_process(streamflow: SimpleNamespace, one_thread: None) -> None:
    L.seed_everything(42, verbose=False)
    model = streamflow.model.StreamflowLSTM(basins=8, hidden=48, lr=0.02)
    data = streamflow.data.StreamflowDataModule(batch_size=16, basins=8, days=180, warm_up=90)
    trainer = L.Trainer(max_epochs=14, limit_val_batches=0, gradient_clip_val=1.0, **QUIET)
    trainer.fit(model, data)
    assert trainer.global_step == 14 * 8 * 32 // 16
    trainer.test(model, data, verbose=False)
    assert trainer.callback_metrics["test_nse"] > 0.6


def test_streamflow_config_runs_with_the_stock_cli(
    streamflow: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["fit", "--config", str(STREAMFLOW / "config.yaml"), "--trainer.fast_dev_run=true"]
    arguments += ["--model.init_args.hidden=8", "--data.init_args.batch_size=4"]
    cli = LightningCLI(args=[*arguments, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"])
    assert type(cli.model) is streamflow.model.StreamflowLSTM
    assert cli.trainer.global_step == 1
    assert {"train_loss", "train_nse", "val_loss", "val_nse"} <= cli.trainer.callback_metrics.keys()


def trained(strategy: str, workers: int, model: L.LightningModule, data: L.LightningDataModule) -> dict[str, float]:
    """Train ten batches, which hold the same samples with any number of workers, and return what is logged."""
    flags = {"split_batches": True, "max_epochs": 1, "limit_train_batches": 10, **QUIET}
    trainer = ItwinaiTrainer(strategy=strategy, devices=workers, **flags)
    trainer.fit(model, data)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize(
    ("folder", "strategies"),
    [(GAN, ("ddp", "horovod")), (TEXTMODEL, ("ddp", "deepspeed_stage_2"))],
    ids=["gan", "text"],
)
def test_same_numbers_as_in_one_process(
    folder: Path, strategies: tuple[str, ...], one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fresh_modules(monkeypatch, folder):
        model, data = importlib.import_module("model"), importlib.import_module("data")

        def run(strategy: str, workers: int) -> tuple[dict[str, float], torch.Tensor]:
            L.seed_everything(7, verbose=False)
            if folder is GAN:
                module, datamodule = model.RingGAN(hidden=16), data.RingDataModule(batch_size=64, samples=640)
            else:
                module = model.SourceTransformer(context=24, width=16, layers=2, heads=2)
                datamodule = data.SourcesDataModule(batch_size=16, context=24, modules=10)
                datamodule.setup("fit")
                datamodule.val.windows = datamodule.val.windows[:100]
                datamodule.setup = lambda stage: None
            logged = trained(strategy, workers, module, datamodule)
            return logged, torch.cat([one.detach().flatten() for one in module.parameters()])

        logged, weights = run("auto", 1)
        for strategy in strategies:
            other_logged, other_weights = run(strategy, 2)
            assert other_logged == pytest.approx(logged, rel=1e-5), strategy
            torch.testing.assert_close(other_weights, weights, rtol=0, atol=1e-5)


def test_gan_covers_the_ring(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with fresh_modules(monkeypatch, GAN):
        model, data = importlib.import_module("model"), importlib.import_module("data")
        ring = data.RingDataModule()
        ring.setup("fit")
        coverage = model.RingGAN().coverage
        coverage.update(ring.val.tensors[0])
        true = coverage.compute()
        assert (true["modes"], float(true["good"])) == (8, pytest.approx(0.989, abs=0.01))
        coverage.reset()
        coverage.update(ring.val.tensors[0][ring.val.tensors[0][:, 0] > 0.9])
        assert coverage.compute()["modes"] == 1
        L.seed_everything(42, verbose=False)
        module = model.RingGAN(hidden=64)
        trainer = L.Trainer(max_epochs=10, num_sanity_val_steps=0, check_val_every_n_epoch=10, **QUIET)
        trainer.fit(module, ring)
        metrics = trainer.callback_metrics
        assert metrics["modes"] == 8 and metrics["good"] > 0.4, metrics


def test_text_model_learns_and_writes(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with fresh_modules(monkeypatch, TEXTMODEL):
        model, data = importlib.import_module("model"), importlib.import_module("data")
        L.seed_everything(42, verbose=False)
        sources = data.SourcesDataModule(context=48, modules=20)
        module = model.SourceTransformer(context=48, width=48, layers=2)
        trainer = L.Trainer(max_steps=250, limit_val_batches=20, val_check_interval=250, **QUIET)
        trainer.fit(module, sources)
        val_bits = float(trainer.callback_metrics["val_bits"])
        assert val_bits < 4.0, "the frequencies of characters alone give 4.6 bits"
        text = module.write("def ", 60)
        assert (
            text.startswith("def ")
            and len(text) == 64
            and text == module.write("def ", 60) != module.write("def ", 60, seed=1)
        )
        # Causal: what comes later changes nothing.
        windows = torch.stack([sources.val[0][:-1], sources.val[0][:-1]])
        windows[1, 20:] = 65
        logits = module(windows)
        assert torch.allclose(logits[0, :20], logits[1, :20], atol=1e-5)
        assert not torch.allclose(logits[0, 20], logits[1, 20], atol=1e-2)
        assert sources.val[0][1:].tolist() == list(sources.val.windows[0][1:])
