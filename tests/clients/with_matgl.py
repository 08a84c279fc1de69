"""MatGL: MEGNet on crystals, from its own graphs, collation and loader."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning.pytorch as pl
from matgl.ext.pymatgen import Structure2Graph
from matgl.graph.data import MGLDataLoader, MGLDataset
from matgl.models import MEGNet
from matgl.utils.training import ModelLightningModule
from pymatgen.core import Lattice, Structure
from torch import nn
from torch.utils.data import DataLoader

from tests.clients.harness import Client

ELEMENTS = ("Cl", "Cs", "K", "Na")


@cache
def crystals() -> MGLDataset:
    """Return salts of various sizes, labelled by these."""
    sizes = [3.6 + 0.03 * number for number in range(21)]
    structures = [
        Structure(Lattice.cubic(size), [ELEMENTS[1 + number % 3], "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
        for number, size in enumerate(sizes)
    ]
    with TemporaryDirectory() as folder:
        return MGLDataset(
            structures=structures,
            labels={"energy": [size - 4 for size in sizes]},
            converter=Structure2Graph(ELEMENTS, cutoff=4.0),
            root=folder,
            save_cache=False,
        )


def make_network() -> nn.Module:
    """Return a small network."""
    return MEGNet(
        dim_node_embedding=4,
        dim_edge_embedding=8,
        nblocks=1,
        hidden_layer_sizes_input=(8, 4),
        hidden_layer_sizes_conv=(8, 8, 4),
        hidden_layer_sizes_output=(8, 4),
        element_types=ELEMENTS,
        cutoff=4.0,
    )


def make_module(workers: int) -> pl.LightningModule:
    """Return a module with its default optimizer and scheduler."""
    return ModelLightningModule(make_network(), lr=1e-2, sync_dist=workers > 1)


def make_loader(batch_size: int, shuffle: bool) -> DataLoader:
    """Return the loader for training, which shuffles, or that for validation."""
    training, validation = MGLDataLoader(crystals(), crystals(), batch_size=batch_size, num_workers=0)
    return training if shuffle else validation


def load(checkpoint: Path) -> pl.LightningModule:
    """Load a module, whose network is not among its hyperparameters."""
    return ModelLightningModule.load_from_checkpoint(checkpoint, model=make_network())


CLIENT = Client(
    name="matgl",
    make_module=make_module,
    make_data=make_loader,
    load=load,
    prediction=lambda returned: returned[0]["Total_Loss"].reshape(1),
    predicting_batch=1,  # it returns one number for a batch: the error, and no predictions
)
