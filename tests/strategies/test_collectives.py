"""The collective operations behave alike under every strategy."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.cases import make_trainer
from tests.support.collectives import CHECKS, DTYPES, Collectives

EXPECTED: dict[str, Any] = {
    "reduce_by_name": {"mean": [1.5, 1.5], "avg": [1.5, 1.5], "sum": [3.0, 3.0], "min": [1.0, 1.0], "max": [2.0, 2.0]},
    "reduce_by_enum": [3.0, 2.0, 1.0],
    "reduce_dtypes": {str(dtype): (str(dtype), 3.0) for dtype in DTYPES},
    "reduce_integer_mean": 1.5,
    "reduce_in_place": [3.0, 3.0],
    "reduce_others": [3, 2.5, "text", None, [1, 2]],
    "gather_shapes": {
        "()": ([2], [1.0, 2.0]),
        "(3,)": ([2, 3], [1.0] * 3 + [2.0] * 3),
        "(2, 3)": ([2, 2, 3], [1.0] * 6 + [2.0] * 6),
        "(1, 2, 2)": ([2, 1, 2, 2], [1.0] * 4 + [2.0] * 4),
    },
    "gather_dtypes": {str(dtype): (str(dtype), [1.0, 2.0]) for dtype in DTYPES} | {"bool": ("torch.bool", [0.0, 1.0])},
    "gather_collection": {"a": [1.0, 2.0], "b": [[1.0, 1.0], [2.0, 2.0]], "c": [1.5, 1.5], "d": "text"},
    "gather_gradients": [2.0, 2.0, 4.0, 4.0],
    "gather_without_gradients": False,
    "broadcast_objects": [{"rank": 0, "text": "x" * 1000}, 1, None, "only here", [0, 0, 0]],
    "barrier_blocks": True,
    "boolean_decision": [False, True, True, False],
    "metric_of_uneven_states": [1.0, 2.0, 2.0],
    "sizes": {"world_size": 2, "trainer": 2, "sampler": {"num_replicas": 2, "rank": 0}, "global_zero": True},
}


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_2", "deepspeed_stage_3", "horovod", "ray", "ray_horovod"])
def test_collectives(strategy: str, request: pytest.FixtureRequest) -> None:
    if strategy.startswith("ray"):
        request.getfixturevalue("local_ray")
    module = Collectives()
    make_trainer(strategy, 2, max_epochs=1).fit(module)
    assert set(module.results) == set(CHECKS) == set(EXPECTED)
    for name, expected in EXPECTED.items():
        assert module.results[name] == expected, name
