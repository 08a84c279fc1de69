"""`itwinai check`: green on good modules, and on faulty ones exactly the right check is red and names the line."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import itwinai
from itwinai.checks.processes import RunFailedError, descendants, run_apart, run_group
from itwinai.checks.registry import CHECKS, choose
from itwinai.checks.report import CheckResult
from itwinai.cli.main import main
from itwinai.errors import ConfigurationError
from itwinai.testing import NamedCheck, parametrize_with_checks
from tests.checks import faulty
from tests.conftest import REPOSITORY, RunCommand, python
from tests.support.cases import Regression, loader

DIGITS = REPOSITORY / "examples" / "digits"
LOCAL = [name for name in CHECKS if name != "hpo_trial"]  # which needs Ray, and is checked with the digits


def line_of(name: str) -> str:
    """Return the place of the line of `faulty` that is marked with a check."""
    file = Path(faulty.__file__)
    number = next(i for i, line in enumerate(file.read_text().splitlines(), 1) if line.endswith(f"# {name}"))
    return f"{os.path.relpath(file)}:{number}"


@pytest.fixture
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be where places in these files have short names; checks write nothing there."""
    monkeypatch.chdir(REPOSITORY)


@pytest.mark.parametrize("name", faulty.FAULTY)
def test_exactly_the_right_check_is_red_and_names_the_line(name: str, in_repository: None) -> None:
    module, data = faulty.FAULTY[name]
    report = itwinai.check(module(), data(), checks=LOCAL, strategies=["ddp"])
    assert report.failed == [name], str(report)
    assert report[name].at == line_of(name), str(report)
    assert report[name].mend
    assert name in str(report) and line_of(name) in str(report)


@parametrize_with_checks(lambda: (Regression(), (loader(8, shuffle=True), loader(8))), checks=LOCAL, strategies=["ddp"])
def test_a_module_of_these_tests_passes(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize(
    ("status", "raised"),
    [
        ("fail", AssertionError),
        ("not applicable", pytest.skip.Exception),
        ("expected failure", pytest.xfail.Exception),
    ],
)
def test_a_named_check_ends_as_its_result_says(status: Any, raised: type[BaseException]) -> None:
    class Known:
        def result(self, name: str) -> CheckResult:
            return CheckResult(name, status, cause="there it is.", mend="Change it.", at="a.py:1")

    with pytest.raises(raised, match="a.py:1: there it is. Change it."):
        NamedCheck("resume", Known)()  # type: ignore[arg-type]


def test_known_failures_are_red_when_they_pass() -> None:
    expected = {"logged_keys": "keys name the rank", "unused_parameters": "said to be wrong"}
    report = itwinai.check(
        faulty.KeysOfRank(), faulty.Data(), checks=expected, expected_failures=expected, strategies=["ddp"]
    )
    assert report["logged_keys"].status == "expected failure" and "keys name the rank" in report["logged_keys"].text
    assert report.failed == ["unused_parameters"]
    assert "it passes, and is said to fail: said to be wrong" in report["unused_parameters"].text
    with pytest.raises(AssertionError, match="unused_parameters: it passes"):
        report.raise_if_failed()


def test_batch_norm_needs_sync_batchnorm() -> None:
    module = faulty.Good()
    module.net.insert(1, torch.nn.BatchNorm1d(8))
    checks = {"checks": ["same_weights"], "strategies": ["ddp"]}
    report = itwinai.check(module, faulty.Data(), **checks)
    assert report.failed == ["same_weights"] and "sync_batchnorm" in report["same_weights"].mend
    report = itwinai.check(module, faulty.Data(), **checks, trainer={"sync_batchnorm": True})
    assert report.ok and report["same_weights"].status == "not applicable"


class Noisy(faulty.Good):
    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return super().training_step([batch[0] + 0.1 * torch.randn_like(batch[0]), batch[1]], batch_idx)


def test_random_numbers_in_steps_are_resumed_and_differ_between_workers() -> None:
    # An epoch of seven batches, of which checkpoints are saved where no gradients wait.
    options = {"accumulate_grad_batches": 3, "gradient_clip_val": 0.3}
    checks = ["resume", "same_weights"]
    report = itwinai.check(Noisy(), faulty.Data(), checks=checks, strategies=["ddp"], trainer=options)
    assert report.ok, str(report)
    assert "random numbers are drawn" in report["same_weights"].detail


def test_digits_are_green_and_nothing_is_written(run_command: RunCommand, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    command = python("-m", "itwinai.cli.main", "check", "-c", str(DIGITS / "config.yaml"), "--strategies", "ddp,ray")
    paths = f"{REPOSITORY}:{DIGITS}"
    ended = run_command([*command, "--json", str(out)], cwd=tmp_path, PYTHONPATH=paths)
    assert ended.code == 0, ended.output
    report = json.loads(out.read_text())
    assert [one["name"] for one in report["checks"]] == list(CHECKS)
    assert {one["status"] for one in report["checks"]} == {"pass"}, ended.output
    details = {one["name"]: one["detail"] for one in report["checks"]}
    assert details["same_weights"] == details["portable_checkpoint"] == "ddp, ray"
    assert "11 passed, in" in ended.output
    assert os.listdir(tmp_path) == ["report.json"]


def test_command_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = Path("config.yaml")
    config.write_text(
        "model: {class_path: tests.checks.faulty.UnusedLayer}\ndata: {class_path: tests.checks.faulty.Data}\n"
    )
    chosen = ["check", "-c", "config.yaml", "--checks", "unused_parameters"]
    assert main(chosen) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "unused_parameters FAIL" in told and "never reached by a backward pass: head.weight, head.bias" in told
    assert "1 failed" in told
    assert main([*chosen, "--expect-failure", "unused_parameters=a head for later"]) == 0
    assert "a head for later" in " ".join(capsys.readouterr().out.split())

    assert main(["check", "--list"]) == 0
    assert all(name in capsys.readouterr().out for name in ["same_weights"])
    for arguments, text in {
        ("-c", "config.yaml", "--checks", "resum"): "no check 'resum'. Did you mean 'resume'?",
        ("-c", "config.yaml", "--strategies", "horovd"): "Did you mean 'horovod'?",
        ("-c", "config.yaml", "--expect-failure", "resume"): "NAME=REASON",
        ("-c", "confg.yaml"): "There is no config file confg.yaml. Did you mean 'config.yaml'?",
        (): "No config is given, and there is no config.yaml",
    }.items():
        if not arguments:
            config.unlink()  # which is found by itself
        assert main(["check", *arguments]) != 0
        assert text in capsys.readouterr().err


def test_names_of_checks() -> None:
    assert [check.name for check in choose(["same_seed", "trains"])] == ["trains", "same_seed"]
    with pytest.raises(ConfigurationError, match="Did you mean 'hpo_trial'"):
        choose(["hpo"])


def place_of_sleep() -> str:
    """Return the line where `sleeper` hangs."""
    lines, first = inspect.getsourcelines(sleeper)
    return f"{os.path.relpath(__file__)}:{first + len(lines) - 1}"


def sleeper() -> None:
    """Start a process with a session of its own whose parent ends, and hang."""
    subprocess.Popen([sys.executable, "-c", "import os, time; os.fork() or time.sleep(600)"], start_new_session=True)
    time.sleep(600)


def sleepers() -> list[str]:
    """Return the ids of what `sleeper` starts, wherever it is in the tree of processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            found += [path.parent.name] if b"os.fork() or time.sleep(600)" in path.read_bytes() else []
    return found


def test_children_that_hang_or_die_leave_nothing(tmp_path: Path, in_repository: None) -> None:
    before = descendants(os.getpid())
    sleeping = sleepers()
    for limit in (1, 10, 60):  # on a busy machine it may not sleep yet when its time is over
        with pytest.raises(RunFailedError, match=f"did not end within {limit} s") as failed:
            run_apart("hangs", sleeper, tmp_path, limit=limit)
        if failed.value.at == place_of_sleep():
            break
    else:
        pytest.fail(f"it hung {failed.value.at}")
    with pytest.raises(RunFailedError, match="killed by SIGKILL"):
        run_apart("dies", lambda: os.kill(os.getpid(), signal.SIGKILL), tmp_path, limit=60)

    def interrupt() -> None:
        if len(descendants(os.getpid())) > len(before) + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_apart("interrupted", sleeper, tmp_path, limit=60, tick=interrupt)
    with pytest.raises(RunFailedError, match="ZeroDivisionError") as failed:
        run_group("fails", lambda rank: 1 // rank.rank, 2, tmp_path, limit=60)
    assert failed.value.at.startswith("tests/checks/test_checks.py:")
    assert run_group("works", lambda rank: os.environ["RANK"], 2, tmp_path, limit=60) == ["0", "1"]
    deadline = time.monotonic() + 30
    while sleepers() != sleeping and time.monotonic() < deadline:  # what is killed may take a moment to end
        time.sleep(0.05)
    assert descendants(os.getpid()) == before and sleepers() == sleeping


def test_a_process_with_threads_is_not_copied(tmp_path: Path) -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="busy")
    thread.start()
    try:
        assert run_apart("works", lambda: descendants(os.getppid()) != [], tmp_path, limit=60) is True
        with pytest.raises(ConfigurationError, match=r"not safe now: another thread runs in this process \(busy\)"):
            run_apart("cannot be sent", partial(print, thread), tmp_path, limit=60)
    finally:
        over.set()
        thread.join()
