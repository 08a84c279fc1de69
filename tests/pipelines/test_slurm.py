"""Each step is a job of a real SLURM, after the jobs of the steps that it needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from itwinai.cli.main import main
from itwinai.pipelines import Pipeline
from itwinai.slurm.commands import ask
from tests.conftest import REPOSITORY, require_programs
from tests.support.slurm import missing_programs, slurm_cluster

STEPS = """
from pathlib import Path

from itwinai.pipelines import OutputFolder


def make(text: str, output: OutputFolder) -> Path:
    (output / "made.txt").write_text(text)
    return output / "made.txt"


def first_letter(made: Path) -> str:
    return made.read_text()[0]


def fail(made: Path) -> int:
    raise RuntimeError("as the test wants it")


def join(letter: str, number: int = 0) -> str:
    return f"{letter}{number}"
"""


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    require_programs(missing_programs(), "apt-get install slurm-wlm munge")
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), 1) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in {**environment, "PYTHONPATH": str(REPOSITORY)}.items():
            patch.setenv(name, value)
        yield


@pytest.mark.usefixtures("slurm")
def test_steps_are_jobs_that_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "slurm_steps.py").write_text(STEPS)
    steps = {
        "make": {"class_path": "slurm_steps.make", "init_args": {"text": "apple"}},
        "letter": {"class_path": "slurm_steps.first_letter", "init_args": {"made": "${steps.make}"}},
        "join": {"class_path": "slurm_steps.join", "init_args": {"letter": "${steps.letter}"}},
        "bad": {"class_path": "slurm_steps.fail", "init_args": {"made": "${steps.make}"}},
        "after-bad": {"class_path": "slurm_steps.join", "init_args": {"letter": "a", "number": "${steps.bad}"}},
    }
    (tmp_path / "pipeline.yaml").write_text(json.dumps({"slurm": {"time": "00:10:00"}, "steps": steps}))
    jobs = Pipeline.from_yaml("pipeline.yaml", {"steps.make.text": "berry"}).submit()
    results = {name: job.result(every=0.5) for name, job in jobs.items()}
    assert {name: result.succeeded for name, result in results.items()} == {
        **dict.fromkeys(("make", "letter", "join"), True),
        **dict.fromkeys(("bad", "after-bad"), False),
    }, {name: job.logs() for name, job in jobs.items()}
    assert results["bad"].exit_code == 1 and "RuntimeError: as the test wants it" in jobs["bad"].logs()
    assert results["after-bad"].exit_code is None  # removed from the queue, and not begun
    assert Pipeline.from_yaml("pipeline.yaml").outputs()["join"] == "b0"
    assert not ask("squeue", "-h")
    capsys.readouterr()
    # The same command goes on: what is done is not submitted again.
    steps["bad"]["class_path"] = steps["after-bad"]["class_path"] = "slurm_steps.join"
    steps["bad"]["init_args"] = {"letter": "b"}
    steps["after-bad"]["init_args"] = {"letter": "${steps.bad}"}
    (tmp_path / "pipeline.yaml").write_text(json.dumps({"steps": steps}))
    assert main(["run", "pipeline.yaml", "--on", "slurm", "--steps.make.text", "berry"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[:-1]] == ["bad", "after-bad"] and "job" in printed[0]
