"""What is said at the end of a run, however it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from itwinai.callbacks import LoggingCallback, ModelCheckpoint, ProfilingCallback, RunSummary, SystemMonitor
from itwinai.callbacks.defaults import with_defaults
from itwinai.errors import ConfigurationError
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
        "auto", 1, logger=CSVLogger(tmp_path), callbacks=[summary], max_epochs=2, log_every_n_steps=1
    )
    loggers = list(trainer.loggers)
    trainer.fit(Regression(), loader(8), loader(8))
    assert trainer.loggers == loggers  # the one that keeps the curves is gone
    printed = capsys.readouterr().out
    assert "run summary: Regression, single_device" in printed
    assert "2 epochs, 26 steps" in printed and "206," in printed and "finished" in printed
    assert "val_loss" in printed
    assert str(summary.page) in printed
    assert max(len(line) for line in printed.splitlines() if "/" not in line) <= 100
    page = summary.page and summary.page.read_text()
    assert page and page.startswith("<!DOCTYPE html>") and page.rstrip().endswith("</html>")
    assert page.count("<svg") >= 2
    assert "max_epochs: 2" in page


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
    flags = {"enable_checkpointing": False}
    watched = with_defaults([own], flags, watch=True, loggers=None)
    assert watched[0] is own
    kinds = ["LoggingCallback", "SystemMonitor", "ProfilingCallback", "TimedProgressBar", "RunSummary"]
    assert [type(callback).__name__ for callback in watched] == kinds
    assert not any(isinstance(one, LoggingCallback) for one in with_defaults(None, flags, watch=True, loggers=False))
    plain = with_defaults(None, {"enable_progress_bar": False}, watch=False, loggers=True)
    assert [type(callback) for callback in plain] == [ModelCheckpoint]
