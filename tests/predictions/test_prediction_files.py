"""Predictions on disk: each sample once, in the order of the dataset, under every strategy and number of workers."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from itwinai.launchers.fork import why_not_fork
from tests.conftest import RunCommand, python
from tests.predictions.cases import INDEXED, Case, cases, check, draw_cases, predict


def test_workers_of_our_own(tmp_path: Path) -> None:
    """Files are read after all predictions, and before any other test does: zarr runs a thread, which forbids forks."""
    drawn = [(workers, case) for workers in (2, 3) for case in draw_cases(12)]
    outputs = [predict(case, "ddp", workers, tmp_path / str(number)) for number, (workers, case) in enumerate(drawn)]
    assert why_not_fork() is None
    for (workers, case), output in zip(drawn, outputs, strict=True):
        check(case, workers, output)


GROUPS = {
    2: "ddp,deepspeed_stage_3",
    4: "ddp,deepspeed_stage_1",
}


# A rank that has had its last batch ends, while another one begins the empty loaders that follow.
ENDS_EMPTY = [
    Case((30, 0, 0), 2, loader_workers, False, "reversed", "tensor", ".parquet", None, False)
    for loader_workers in (0, 2)
]  # fmt: skip


@pytest.mark.parametrize("workers", GROUPS)
def test_groups_under_torchrun(workers: int, run_command: RunCommand, tmp_path: Path) -> None:
    drawn = [*ENDS_EMPTY, *draw_cases(30 if workers == 2 else 15)]
    (tmp_path / "cases.pickle").write_bytes(pickle.dumps(drawn))
    script = ["tests/predictions/joined.py", str(tmp_path), str(workers), GROUPS[workers]]
    ended = run_command(
        python("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers), *script)
    )
    assert ended.code == 0, ended.output
    assert not pickle.loads((tmp_path / "found.pickle").read_bytes())


def test_horovod(run_command: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "cases.pickle").write_bytes(pickle.dumps(draw_cases(20)))
    launcher = [str(Path(sys.executable).with_name("horovodrun")), "--gloo", "-np", "2"]
    ended = run_command([*launcher, *python("tests/predictions/joined.py", str(tmp_path), "2", "horovod")])
    assert ended.code == 0, ended.output
    assert not pickle.loads((tmp_path / "found.pickle").read_bytes())


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_one_process(case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    check(case, 1, predict(case, "auto", 1, tmp_path_factory.mktemp("drawn")))


def test_ray(kept_ray_workers: None, tmp_path: Path) -> None:
    drawn = draw_cases(4, INDEXED)
    outputs = [predict(case, "ray", 2, tmp_path / str(number)) for number, case in enumerate(drawn)]
    for case, output in zip(drawn, outputs, strict=True):
        check(case, 2, output)
