"""What `itwinai.compat.ray` takes for granted about private names."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from itwinai.compat import ray as compat_ray


def test_ray_prints_rank_0_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    kept: list[dict[str, Any]] = []
    handlers, dispatcher.handlers = dispatcher.handlers, [("ray_print_logs", functools.partial(kept.append))]
    try:
        for _ in range(2):
            compat_ray.print_rank_0_plainly()
        for rank in (0, 1):
            dispatcher.emit({"actor_name": f"rank {rank}", "is_err": False, "lines": ["a", "b"], "pid": 1})
    finally:
        dispatcher.handlers = handlers
    assert capsys.readouterr().out == "a\nb\n"
    assert [data["actor_name"] for data in kept] == ["rank 1"]


def test_storage_of_a_function_of_ray_tune(local_ray: None, tmp_path: Path) -> None:
    from ray import tune

    def trial(config: dict[str, Any]) -> None:
        tune.report({"folder": compat_ray.tune_storage()})

    assert compat_ray.tune_storage() is None
    results = tune.Tuner(trial, run_config=tune.RunConfig(storage_path=str(tmp_path), name="a", verbose=0)).fit()
    assert results[0].metrics["folder"] == results[0].path


def test_only_the_cluster_that_has_ended_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    note.write_text("127.0.0.1:1234")
    compat_ray.forget_ray_cluster("127.0.0.1:4321")
    assert note.exists()
    compat_ray.forget_ray_cluster("127.0.0.1:1234")
    assert not note.exists()
    compat_ray.forget_ray_cluster("127.0.0.1:1234")
