"""The cores that workers have, alone and together."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

from itwinai.launchers.cpu_affinity import (
    available_cores,
    cores_of_each,
    oversubscription_text,
    own_cores,
    quota,
    share_cores,
)


def test_own_cores_are_those_that_the_process_is_bound_to() -> None:
    before = os.sched_getaffinity(0)
    one = min(before)
    os.sched_setaffinity(0, {one})
    try:
        assert own_cores() == {one} and available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert own_cores() == before


@pytest.mark.parametrize(("text", "expected"), [("200000 100000\n", 2.0), ("max 100000\n", math.inf), ("", math.inf)])
def test_limit_of_a_container(text: str, expected: float, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/job/step\n")
    (tmp_path / "job" / "step").mkdir(parents=True)
    assert quota(tmp_path, own) == quota(tmp_path / "missing", tmp_path / "missing") == math.inf
    for level in (tmp_path, tmp_path / "job"):  # the group itself, or one that it is in
        (level / "cpu.max").write_text(text)
        assert quota(tmp_path, own) == expected
        (level / "cpu.max").write_text("max 100000\n")
    (tmp_path / "cpu.max").write_text(text)
    assert quota(tmp_path, tmp_path / "missing") == expected  # a container, which sees its own group as the root


def test_workers_share_cores_or_have_their_own() -> None:
    shared, own = frozenset(range(8)), [frozenset(range(4)), frozenset(range(4, 8))]
    assert cores_of_each([shared], math.inf) == 8
    assert cores_of_each([shared, shared], math.inf) == cores_of_each(own, math.inf) == 4
    assert cores_of_each([shared, shared], 3.5) == 1
    assert cores_of_each([shared] * 12, math.inf) == 1


def test_threads_are_a_share_of_the_cores_unless_the_environment_says_how_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        share_cores(10_000)
        assert torch.get_num_threads() == 3
        monkeypatch.delenv("OMP_NUM_THREADS")
        share_cores(10_000)
        assert torch.get_num_threads() == 1
        assert os.environ["OMP_NUM_THREADS"] == "1"
    finally:
        torch.set_num_threads(before)


def test_more_threads_than_cores_are_told_with_what_to_do() -> None:
    assert oversubscription_text(2, 8, 8) == oversubscription_text(1, 1, 1) == ""
    assert "2 workers compute with 16 threads on 8 cores" in oversubscription_text(2, 16, 8)
    assert oversubscription_text(2, 16, 8).endswith("set cpu_threads=4 (--trainer.cpu_threads 4).")
    assert oversubscription_text(1, 64, 2, flag="--threads ").endswith("set --threads 2.")
    assert oversubscription_text(4, 4, 1).endswith("use at most 1 worker per node.")
