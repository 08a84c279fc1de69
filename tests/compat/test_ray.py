"""What `itwinai.compat.ray` takes for granted about private names."""

from __future__ import annotations

import functools
import time
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


def test_ray_starts_without_a_server_that_was_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import node, services

    asked: list[bool | None] = []
    looked: list[str] = []
    waited: list[str] = []
    monkeypatch.setattr(
        node.Node, "start_api_server", lambda self, **options: asked.append(options["include_dashboard"])
    )
    monkeypatch.setattr(services, "get_node", lambda address, node_id: looked.append(node_id) or {})
    monkeypatch.setattr(compat_ray, "_wait_for_node", lambda address, node_id: waited.append(node_id))
    before = node.Node.start_api_server, services.get_node
    with compat_ray.starting_quickly():
        for include in (False, None, True):
            node.Node.start_api_server(object(), include_dashboard=include, raise_on_failure=False)  # type: ignore[arg-type]
        assert services.get_node("127.0.0.1:1", "a") == {}
    assert asked == [None, True]
    assert looked == waited == ["a"]
    assert (node.Node.start_api_server, services.get_node) == before


def test_what_ray_is_started_without(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import inspect

    import ray
    from ray._private import node
    from ray.air._internal import usage
    from ray.tune import tune

    # The names are those that are used where Ray starts, and where a search does.
    assert "self.start_api_server(\n            include_dashboard=" in inspect.getsource(node.Node.start_head_processes)
    assert "ray._private.services.get_node(" in inspect.getsource(node.Node.__init__)
    assert "air_usage.tag_callbacks(callbacks)" in inspect.getsource(tune.run)
    context = ray.get_runtime_context()
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    compat_ray._wait_for_node(context.gcs_address, context.get_node_id())
    assert not waits
    compat_ray._wait_for_node(context.gcs_address, "another", timeout=0.1)
    assert waits
    with compat_ray.without_counting_callbacks():
        assert not usage.tag_callbacks([object()])
    assert usage.tag_callbacks.__module__ == usage.__name__


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
