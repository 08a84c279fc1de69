"""What is said at the end of a run, however it ends."""

from __future__ import annotations

import re
import sys
import time
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import wandb
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch import Tensor
from torch.utils.data import DataLoader

from itwinai.callbacks import LoggingCallback, ModelCheckpoint, ProfilingCallback, RunSummary, SystemMonitor
from itwinai.callbacks.defaults import with_defaults
from itwinai.errors import ConfigurationError
from itwinai.loggers import MLFlowLogger
from itwinai.run_info import run as facts
from tests.support.cases import Regression, loader, make_trainer


class Fails(Regression):
    """Fails in its sixth step."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if batch_idx == 5:
            raise ArithmeticError("the <loss> is gone\nand more")
        return super().training_step(batch, batch_idx)


def test_screen_and_page_tell_how_it_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = RunSummary()
    trainer = make_trainer(
        "auto", 1, logger=CSVLogger(tmp_path), callbacks=[summary], max_epochs=3, log_every_n_steps=1
    )
    loggers = list(trainer.loggers)
    trainer.fit(Regression(), loader(8), loader(8))
    assert trainer.loggers == loggers  # the one that keeps the curves is gone
    printed = capsys.readouterr().out
    assert "run summary: Regression, single_device" in printed
    assert "3 epochs, 39 steps" in printed and "309," in printed and "finished" in printed
    assert "val_loss" in printed
    assert str(summary.page) in printed
    assert max(len(line) for line in printed.splitlines() if "/" not in line) <= 100
    page = summary.page and summary.page.read_text()
    assert page and page.startswith("<!DOCTYPE html>") and page.rstrip().endswith("</html>")
    assert page.count("<svg") >= 2
    assert "max_epochs: 3" in page
    header = page[page.index("<header>") : page.index("</header>")]
    assert "Training of Regression" in header and "strategy single_device, 1 worker (cpu)" in header
    assert f"{datetime.now():%B %Y}" in header and f"itwinai {version('itwinai')}" in header
    assert Path(sys.argv[0]).name in header  # the command


def test_a_failed_run_is_told_of_too_and_text_stays_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = RunSummary()
    callbacks = [summary, SystemMonitor(interval=0.05), ProfilingCallback(operators=False)]
    trainer = make_trainer("auto", 1, logger=CSVLogger(tmp_path), callbacks=callbacks, max_epochs=2)
    with pytest.raises(ArithmeticError):
        trainer.fit(Fails(), loader(8))
    printed = " ".join(capsys.readouterr().out.split())
    assert "ended by ArithmeticError: the <loss> is gone" in printed
    assert "nothing was logged" in printed
    assert "5 steps)" in printed and "forward" in printed  # of what it has done until then
    assert summary.page is not None
    assert "the &lt;loss&gt; is gone" in summary.page.read_text()


def test_without_a_logger_it_says_that_there_are_no_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = RunSummary(path=tmp_path / "deep" / "mine.html")
    trainer = make_trainer("auto", 1, callbacks=[summary], max_epochs=1, default_root_dir=tmp_path)
    trainer.fit(Regression(), loader(8))
    assert trainer.loggers == []
    assert "no logger" in capsys.readouterr().out
    assert (tmp_path / "deep" / "mine.html").exists()


def test_a_page_that_cannot_be_written_does_not_spoil_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    trainer = make_trainer("auto", 1, callbacks=[RunSummary(path=tmp_path / "file" / "run.html")], max_epochs=1)
    with pytest.warns(UserWarning, match=r"page .*run\.html could not be written.*another place"):
        trainer.fit(Regression(), loader(8))
    assert trainer.state.finished


def test_callbacks_tell_by_themselves_without_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profiling = ProfilingCallback(operators=False, folder=tmp_path)
    trainer = make_trainer("auto", 1, callbacks=[profiling], max_epochs=2)
    trainer.fit(Regression(), loader(8))
    printed = capsys.readouterr().out
    assert "where the time of a step goes" in printed and "of it" in printed
    trainer = make_trainer("auto", 1, callbacks=[profiling, RunSummary(path=False)], max_epochs=1)
    trainer.fit(Regression(), loader(8))
    printed = capsys.readouterr().out
    assert "where the time of a step goes" not in printed and printed.count("\n  of it") == 1


class Slow(Regression):
    """Takes its time in validation."""

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        time.sleep(0.06)
        super().validation_step(batch, batch_idx)


def test_the_time_of_a_run_is_told_by_what_it_went_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callbacks = [RunSummary(path=False), ProfilingCallback(operators=False, folder=tmp_path)]
    make_trainer("auto", 1, callbacks=callbacks, max_epochs=2).fit(Slow(), loader(8), loader(8))
    facts = " ".join(capsys.readouterr().out.split())
    shares = dict(re.findall(r"(training|validation|checkpoints and other) (\d+(?:\.\d+)?) %", facts))
    # 2 x 13 batches of 60 ms, and of less than 1 ms
    assert float(shares["validation"]) > 50 > float(shares["training"]) > 0
    (rate,) = re.findall(r"206, ([\d,]+) per second in training batches", facts)
    assert float(rate.replace(",", "")) > 206 / (2 * 13 * 0.06)  # of the whole time it would be less


@pytest.mark.parametrize("what", ["screen and page", "profile"])
def test_a_run_that_tries_out_the_code_leaves_nothing(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profiling = ProfilingCallback()
    callbacks = [profiling, RunSummary()] if what == "screen and page" else [profiling]
    options = {"callbacks": callbacks, "default_root_dir": tmp_path, "logger": CSVLogger(tmp_path)}
    trainer = make_trainer("auto", 1, fast_dev_run=3, **options)
    trainer.fit(Regression(), loader(8), loader(8))
    assert trainer.state.finished and trainer.global_step == 3
    assert capsys.readouterr().out == ""
    assert list(tmp_path.rglob("*")) == []


def test_samples_that_nobody_knows_are_told_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batches = [(torch.randn(4, 8), torch.randn(4, 1)) for _ in range(3)]
    trainer = make_trainer("auto", 1, callbacks=[RunSummary(path=False)], max_epochs=1)
    trainer.fit(Regression(), DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    assert "the number of samples: the DataLoader has batch_size=None" in capsys.readouterr().out


def test_git_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(facts, "code_in", asked.append)
    options = {"callbacks": [LoggingCallback(), RunSummary(terminal=False)], "logger": CSVLogger(tmp_path)}
    make_trainer("auto", 1, max_epochs=1, **options).fit(Regression(), loader(8))
    assert len(asked) == 1


def test_loggers_that_keep_files_elsewhere_get_page_and_profile(tmp_path: Path) -> None:
    logger, csv = MLFlowLogger(save_dir=str(tmp_path / "mlflow")), CSVLogger(tmp_path)
    callbacks = [ProfilingCallback(wait=2, warmup=1, active=1), RunSummary(terminal=False)]
    make_trainer("auto", 1, callbacks=callbacks, logger=[csv, logger], max_epochs=1).fit(Regression(), loader(8))
    (artifacts,) = (tmp_path / "mlflow").rglob("artifacts")
    files = {path.relative_to(artifacts).as_posix(): path for path in artifacts.rglob("*") if path.is_file()}
    trace = "profile/rank-0.1.pt.trace.json.gz"
    assert files.keys() == {"run.html", trace, "profile/steps.png", "profile/workers.csv", "profile/operators.csv"}
    for name, path in files.items():
        assert path.read_bytes() == Path(csv.log_dir, name).read_bytes()
    assert len(list(tmp_path.rglob("*.pt.trace.json.gz"))) == 2


def test_wandb_gets_copies_of_page_and_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    logger = WandbLogger(save_dir=tmp_path, project="files", offline=True)
    summary, profiling = RunSummary(terminal=False), ProfilingCallback(operators=False)
    options = {"callbacks": [profiling, summary], "logger": [CSVLogger(tmp_path), logger], "max_epochs": 1}
    try:
        make_trainer("auto", 1, **options).fit(Regression(), loader(8))
    finally:
        wandb.finish()
    staged = {path.read_bytes() for path in (tmp_path / "data").rglob("staging/*")}
    assert summary.page is not None and profiling.profile is not None
    expected = [summary.page, *(profiling.profile.folder / name for name in ("steps.png", "workers.csv"))]
    assert {path.read_bytes() for path in expected} <= staged


def test_two_profilers_of_torch_are_an_error(tmp_path: Path) -> None:
    trainer = make_trainer("auto", 1, callbacks=[ProfilingCallback(folder=tmp_path)], max_epochs=1, profiler="pytorch")
    with pytest.raises(ConfigurationError, match=r"Leave out the trainer's profiler, or set ProfilingCallback\(oper"):
        trainer.fit(Regression(), loader(8))


def test_python_functions_are_told(tmp_path: Path) -> None:
    class Busy(Regression):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            self.burn()
            return super().training_step(batch, batch_idx)

        def burn(self) -> None:
            sum(number * number for number in range(200_000))

    profiling = ProfilingCallback(operators=False, python=True, folder=tmp_path)
    make_trainer("auto", 1, callbacks=[profiling], max_epochs=3).fit(Busy(), loader(8))
    section = next(section for section in profiling.report() if section.title == "Python functions")
    assert any("burn" in row[0] for table in section.tables for row in table.rows)
    assert "<svg" in Path(section.facts["flame graph"]).read_text()


def test_watching_adds_what_is_not_there() -> None:
    own = LoggingCallback(per_rank=True)
    watched = with_defaults([own], watch=True, loggers=None, progress=True, summary=False, checkpoints=False)
    assert watched[0] is own
    kinds = ["LoggingCallback", "SystemMonitor", "ProfilingCallback", "TimedProgressBar", "RunSummary"]
    assert [type(callback).__name__ for callback in watched] == kinds
    without_logger = with_defaults(None, watch=True, loggers=False, progress=True, summary=False, checkpoints=False)
    assert not any(isinstance(one, LoggingCallback) for one in without_logger)
    plain = with_defaults(None, watch=False, loggers=True, progress=False, summary=False, checkpoints=True)
    assert [type(callback) for callback in plain] == [ModelCheckpoint]
