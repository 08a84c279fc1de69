"""Chemprop: a message-passing network over molecules, from its own metrics, scheduler and loader."""

from __future__ import annotations

import lightning.pytorch as pl
from chemprop.data import MoleculeDatapoint, MoleculeDataset, build_dataloader
from chemprop.models import MPNN
from chemprop.nn import BondMessagePassing, MeanAggregation, RegressionFFN
from torch.utils.data import DataLoader

from tests.clients.harness import Client


def make_module(workers: int) -> pl.LightningModule:
    """Return a small network."""
    return MPNN(
        BondMessagePassing(d_h=16, depth=2),
        MeanAggregation(),
        RegressionFFN(input_dim=16, hidden_dim=16),
        warmup_epochs=1,
        init_lr=1e-3,
        max_lr=1e-2,
    )


def make_loader(batch_size: int, shuffle: bool) -> DataLoader:
    """Return a loader of alcohols and acids, labelled by their length."""
    smiles = [f"{'C' * length}{end}" for length in range(2, 13) for end in ("O", "C(=O)O")]
    points = [MoleculeDatapoint.from_smi(one, [0.1 * len(one)]) for one in smiles]
    return build_dataloader(MoleculeDataset(points), batch_size=batch_size, shuffle=shuffle)


CLIENTS = (
    Client(
        name="chemprop",
        make_module=make_module,
        make_data=make_loader,
        load=MPNN.load_from_checkpoint,
        prediction=lambda returned: returned,
    ),
)
