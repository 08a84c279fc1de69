"""The packages of all strategies, imported once: workers are copies of this process and need not import them."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _imported_strategies() -> None:
    import deepspeed  # noqa: F401
    import horovod.torch  # noqa: F401
