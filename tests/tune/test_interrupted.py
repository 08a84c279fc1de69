"""Searches whose process is interrupted, or killed, and that go on."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from itwinai.config.lightning_cli import command_line
from itwinai.tune.search_journal import read_search
from tests.conftest import assert_no_process_left, start_script, wait_for_no_workers

EPOCHS = 4


def wait_until(condition: Callable[[], bool], process: Any, output: Path, seconds: float = 120) -> None:
    """Wait until something is so, as long as a process runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.05)


def test_a_search_that_was_interrupted_and_killed_continues_to_the_same_result(tmp_path: Path) -> None:
    going = tmp_path / "go on"
    config = {
        "seed_everything": 1,
        "trainer": {"accelerator": "cpu", "max_epochs": EPOCHS, "logger": False},
        "model": {"class_path": "tests.support.tuned.Regression", "init_args": {"wait_for": str(going)}},
        "data": {"class_path": "tests.support.tuned.Points"},
        "tune": {
            "metric": "val_loss",
            "space": {"model.lr": {"grid": [0.1, 0.2]}},
            "num_samples": 1,
            "storage": str(tmp_path),
        },
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    folder = tmp_path / "search"

    def search(name: str, *flags: str) -> tuple[Any, Path]:
        output = tmp_path / name
        return start_script(["-m", "itwinai.cli.main", "tune", "-c", str(file), *flags], output), output

    def both_wait() -> bool:
        return (folder / "reports.jsonl").exists() and [len(one.reports) for one in read_search(folder).trials] == [
            2,
            2,
        ]

    def both_have_restored(times: int) -> bool:
        logs = [path.read_text() for path in folder.glob("*/output.log")]
        return [text.count("Restored all states") for text in logs] == [times] * 2

    # Ctrl-C.
    process, output = search("first")
    wait_until(both_wait, process, output)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, output.read_text()
    assert_no_process_left(process.pid)
    printed = output.read_text()
    assert "--resume" in printed and "Traceback" not in printed
    assert (folder / "best_config.yaml").exists()
    assert {one.status for one in read_search(folder).trials} == {"waiting"}

    # Killed, while it goes on.
    process, output = search("second", "--resume")
    wait_until(lambda: both_have_restored(1), process, output)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    wait_for_no_workers()  # Ray's own agents take longer to notice

    # Not as something else than it was.
    process, output = search("other", "--resume", "--tune.scheduler=asha", "--trainer.max_epochs=9")
    assert process.wait(120) == 1
    assert "tune.scheduler was None, and is 'asha'; trainer.max_epochs was 4, and is 9" in output.read_text()

    # To the end.
    going.touch()
    process, output = search("third", "--resume")
    assert process.wait(120) == 0, output.read_text()
    assert_no_process_left(process.pid)
    record = read_search(folder)
    assert [one.status for one in record.trials] == ["finished"] * 2
    assert [[report.number for report in one.reports] for one in record.trials] == [[1, 2, 3, 4]] * 2
    best = yaml.safe_load((folder / "best_config.yaml").read_text())
    best["trainer"] |= {"default_root_dir": str(tmp_path), "enable_checkpointing": False}
    cli = command_line(best, run=False, save_config_callback=None)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    values = record.values(record.ranked()[0])
    assert values == (float(cli.trainer.callback_metrics["val_loss"]),)

    # And nothing is lost by mistake.
    process, output = search("fourth")
    assert process.wait(120) == 1
    assert "There is a search in" in output.read_text()
