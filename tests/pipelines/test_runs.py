"""Steps in processes of their own: side by side, failing, killed, interrupted; nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from itwinai.pipelines import Pipeline
from itwinai.pipelines.scheduler import StepsFailedError
from tests.conftest import REPOSITORY

STEPS = '''
import os
import signal
from pathlib import Path

from itwinai.pipelines import OutputFolder


def meet(fifo: str, writes: bool) -> str:
    """End only while the other one runs, too."""
    with open(fifo, "w" if writes else "r") as file:
        print("met")
        return file.write("hello") and "wrote" if writes else file.read()


def join(first: str, second: str) -> str:
    return f"{first} {second}"


def fail(number: int) -> int:
    return divide(number, 0)


def divide(number: int, by: int) -> int:
    return number // by


class InTheMiddle:
    """Write two parts; be killed between them, once."""

    resumes = True

    def __init__(self, marker: str, output: OutputFolder) -> None:
        self.marker, self.output = Path(marker), output

    def run(self) -> dict[str, str]:
        kept = sorted(path.name for path in self.output.glob("part*"))
        (self.output / "part1").write_text("1")
        if not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (self.output / "part2").write_text("2")
        return {"kept": ",".join(kept)}


def wait(pids: str, fifo: str) -> None:
    Path(pids).with_suffix(".part").write_text(str(os.getpid()))
    Path(pids).with_suffix(".part").rename(pids)
    with open(fifo):
        pass
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    (tmp_path / "parallel_steps.py").write_text(STEPS)
    sys.modules.pop("parallel_steps", None)
    os.mkfifo(tmp_path / "fifo")
    return tmp_path


def step(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"parallel_steps.{name}", "init_args": arguments}


def test_branches_run_side_by_side_and_the_others_of_a_failed_one_end(folder: Path) -> None:
    steps = {
        "write": step("meet", fifo="fifo", writes=True),
        "read": step("meet", fifo="fifo", writes=False),
        "join": step("join", first="${steps.write}", second="${steps.read}"),
        "bad": step("fail", number=3),
        "after-bad": step("join", first="a", second="${steps.bad}") | {"init_args": {"first": "a", "second": "b"}},
    }
    steps["after-bad"]["after"] = ["bad"]
    lines: list[str] = []
    pipeline = Pipeline.from_dict({"steps": steps})
    with pytest.raises(StepsFailedError) as raised:
        pipeline.run(jobs=3, say=lines.append)
    assert pipeline.outputs() == {"write": "wrote", "read": "hello", "join": "wrote hello"}
    assert "[write] met" in lines and "[read] met" in lines and "bad: failed with exit code 1" in lines
    shown = [line for line in lines if line.startswith("[bad]")]
    assert "return number // by" in "\n".join(shown) and "itwinai/pipelines" not in "\n".join(shown)
    assert shown[-2:] != [] and any("ZeroDivisionError" in line for line in shown)
    message = str(raised.value)
    assert "'bad' failed" in message and "logs/bad.txt" in message and "Not run therefore: after-bad" in message
    assert raised.value.codes == {"bad": 1}
    # What has ended does not run again; what has failed does, where it is corrected.
    steps["bad"]["class_path"], steps["bad"]["init_args"] = "parallel_steps.divide", {"number": 3, "by": 2}
    result = Pipeline.from_dict({"steps": steps}).run(say=lines.append)
    assert result.ran == ("bad", "after-bad") and set(result.cached) == {"write", "read", "join"}
    kept = json.loads((folder / "runs" / "pipeline" / "bad" / "step.json").read_text())
    assert kept["outputs"] == 1 and "by" in kept["fingerprint"]["config"]
    assert "bad:" in (folder / "runs" / "pipeline" / "pipeline.lock.yaml").read_text()


def test_a_step_that_is_killed_goes_on_and_is_whole_or_absent(folder: Path) -> None:
    pipeline = Pipeline.from_dict({"steps": {"middle": step("InTheMiddle", marker="once.txt")}})
    with pytest.raises(StepsFailedError) as raised:
        pipeline.run(say=lambda line: None)
    assert raised.value.codes == {"middle": 128 + signal.SIGKILL}
    outputs = folder / "runs" / "pipeline" / "middle"
    assert not outputs.exists()
    assert pipeline.plan().of("middle").reasons == ["goes on"]
    result = pipeline.run(say=lambda line: None)
    assert result.outputs["middle"] == {"kept": "part1"}
    assert sorted(path.name for path in outputs.iterdir()) == ["part1", "part2", "step.json"]
    assert not list(outputs.parent.glob(".part*"))
    assert pipeline.run(say=lambda line: None).cached == ("middle",)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind(folder: Path, number: int) -> None:
    (folder / "pipeline.yaml").write_text(json.dumps({"steps": {"wait": step("wait", pids="pid.txt", fifo="fifo")}}))
    command = [sys.executable, "-m", "itwinai.cli.main", "run", "pipeline.yaml"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_until((folder / "pid.txt").exists)
    second = subprocess.run(command, capture_output=True, text=True) if number == signal.SIGINT else None
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    pid = int((folder / "pid.txt").read_text())
    wait_until(lambda: not alive(pid))
    assert not (folder / "runs" / "pipeline" / "wait").exists()
    if second is not None:
        assert process.returncode == 130 and "stopping wait" in output
        assert second.returncode == 1 and "is run by another process" in second.stderr


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_interrupted_training_resumes_and_predicts(folder: Path) -> None:
    config = {
        "seed_everything": 1,
        "trainer": {
            "accelerator": "cpu",
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "elsewhere"}},
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "model": {"class_path": "tests.support.tuned.Regression"},
        "data": {"class_path": "tests.support.tuned.Points"},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    overrides = {"trainer.max_epochs": 3, "model.die_once": str(folder / "killed")}
    steps = {
        "train": {"fit": "config.yaml", "overrides": overrides},
        "check": {"validate": "${steps.train.config}", "ckpt": "${steps.train.checkpoint}"},
    }
    lines: list[str] = []
    pipeline = Pipeline.from_dict({"steps": steps})
    with pytest.raises(StepsFailedError):
        pipeline.run(say=lines.append)
    assert any("was ended by SIGKILL" in line for line in lines) and not any(".part-" in line for line in lines)
    assert pipeline.plan().of("train").reasons == ["goes on"]
    lines.clear()
    result = pipeline.run(say=lines.append)
    assert any(line.startswith("Restored all states from the checkpoint") for line in lines)
    train = result.outputs["train"]
    assert train["checkpoint"].name.startswith("epoch=2") and train["checkpoint"].is_file()
    assert result.outputs["check"]["metrics"]["val_loss"] == pytest.approx(train["metrics"]["val_loss"], rel=1e-5)
    assert not (folder / "elsewhere").exists()  # or it would resume from other runs
    assert pipeline.run(say=lines.append).ran == ()

    steps["train"]["overrides"] = {**overrides, "trainer.max_epochs": 4}
    plan = Pipeline.from_dict({"steps": steps}).plan()
    assert plan.of("train").reasons == ["config.trainer.max_epochs 3 → 4"]
    assert plan.of("check").status == "may run"  # its config is made by the training
    steps["train"]["overrides"] = {**overrides, "model.widht": 3}
    with pytest.raises(ValueError, match=r"steps.train: in the config of the step .*'widht'"):
        Pipeline.from_dict({"steps": steps}).run(say=lines.append)
