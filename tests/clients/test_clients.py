"""Packages that users train with: their own modules end with the weights of stock lightning under every strategy."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from itwinai import ItwinaiTrainer
from tests.clients.harness import (
    STRATEGIES,
    Client,
    Trained,
    as_vector,
    metrics_of,
    predict,
    train,
    train_itwinai,
    weights_of,
)
from tests.clients.registry import CLIENTS
from tests.support.cases import relative_difference

LIMIT = 1e-5

each_client = pytest.mark.parametrize("client", CLIENTS, ids=str)


@pytest.fixture(scope="session", autouse=True)
def _imported_strategies() -> None:
    """Import the packages of all strategies once: workers are copies of this process."""
    import deepspeed  # noqa: F401
    import horovod.torch  # noqa: F401


@cache
def stock(client: Client) -> Trained:
    """Return what stock lightning makes of a client's module in one process."""
    return train(client, pl.Trainer)


@each_client
def test_one_process_ends_with_the_bits_of_lightning(client: Client) -> None:
    reference = stock(client)
    own = train_itwinai(client, "auto", workers=1)
    weights, expected = weights_of(own.module), weights_of(reference.module)
    assert weights.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(weights[name], value)] == []
    assert metrics_of(own.trainer) == metrics_of(reference.trainer)


COMPARABLE = [
    pytest.param(client, strategy, id=f"{client}-{strategy}")
    for client in CLIENTS
    for strategy in STRATEGIES
    if strategy not in client.differs
]


@pytest.mark.parametrize(("client", "strategy"), COMPARABLE)
def test_two_workers_end_with_the_weights_of_one_process(client: Client, strategy: str, no_leftovers: None) -> None:
    reference = stock(client)
    own = train_itwinai(client, strategy, workers=2)
    assert own.trainer.global_step == reference.trainer.global_step
    difference = relative_difference(as_vector(own.module), as_vector(reference.module))
    print(f"{client.name} {strategy}: {difference:.1e}")
    assert difference <= LIMIT


@each_client
def test_training_moves_the_weights(client: Client) -> None:
    """The other tests would not notice two runs that both learn nothing."""
    trained = stock(client)
    assert trained.trainer.global_step == client.epochs * trained.trainer.num_training_batches >= 6
    trainable = [name for name, parameter in trained.module.named_parameters() if parameter.requires_grad]
    weights = weights_of(trained.module)
    moved = [name for name in trainable if relative_difference(weights[name], trained.before[name]) > 1e-3]
    assert len(moved) > len(trainable) / 3  # some packages have layers that a configuration does not use


@pytest.mark.parametrize("workers", [1, 2])
@each_client
def test_its_module_loads_the_checkpoint(client: Client, workers: int, tmp_path: Path) -> None:
    own = train_itwinai(
        client, "ddp" if workers > 1 else "auto", workers, enable_checkpointing=True, default_root_dir=tmp_path
    )
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    weights, expected = weights_of(client.load(checkpoint)), weights_of(own.module)
    assert weights.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(weights[name], value)] == []


@pytest.mark.parametrize("client", [client for client in CLIENTS if client.prediction is not None], ids=str)
def test_two_workers_predict_in_the_order_of_the_dataset(client: Client, no_leftovers: None) -> None:
    module = stock(client).module
    expected = predict(client, pl.Trainer, module, workers=1)
    predicted = predict(client, ItwinaiTrainer, module, workers=2, strategy="ddp")
    assert len(expected.unique(dim=0)) > len(expected) / 2  # otherwise the order could not be told
    torch.testing.assert_close(predicted, expected, rtol=1e-5, atol=1e-6)
