"""Predictions on disk: each sample once, in the order of the dataset, under every strategy and number of workers."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.conftest import RunCommand, python
from tests.predictions.cases import INDEXED, Case, cases, check, draw_cases, predict


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_one_process(case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    check(case, 1, predict(case, "auto", 1, tmp_path_factory.mktemp("drawn")))


def predict_and_check(drawn: list[Case], strategy: str, workers: int, folder: Path) -> None:
    """Read the files after all predictions: zarr runs a thread, with which nothing can be forked."""
    outputs = [predict(case, strategy, workers, folder / str(number)) for number, case in enumerate(drawn)]
    for case, output in zip(drawn, outputs, strict=True):
        check(case, workers, output)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_of_our_own(workers: int, tmp_path: Path) -> None:
    predict_and_check(draw_cases(12), "ddp", workers, tmp_path)


GROUPS = {
    2: "ddp,deepspeed_stage_1,deepspeed_stage_3",
    4: "ddp,deepspeed_stage_3",
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


def test_ray(local_ray: None, tmp_path: Path) -> None:
    predict_and_check(draw_cases(4, INDEXED), "ray", 2, tmp_path)
