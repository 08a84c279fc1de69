"""MatGL: MEGNet for energies, TensorNet for forces, from its own graphs, collation and loader."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning.pytorch as pl
from matgl.ext.pymatgen import Structure2Graph
from matgl.graph.data import MGLDataLoader, MGLDataset
from matgl.models import MEGNet, TensorNet
from matgl.utils.training import ModelLightningModule, PotentialLightningModule
from pymatgen.core import Lattice, Structure
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.clients.harness import Client

ELEMENTS = ("Cl", "Cs", "K", "Na")


@cache
def salts(forces: bool) -> MGLDataset:
    """Return salts of various sizes, labelled by these, and by forces where asked for."""
    sizes = [3.6 + 0.03 * number for number in range(21)]
    structures = [
        Structure(Lattice.cubic(size), [ELEMENTS[1 + number % 3], "Cl"], [[0, 0, 0], [0.45, 0.5, 0.55]])
        for number, size in enumerate(sizes)
    ]
    pulls = [[[4 - size, 0.0, size - 4], [size - 4, 0.0, 4 - size]] for size in sizes]
    labels = {"energies": [size - 4 for size in sizes], **({"forces": pulls} if forces else {})}
    with TemporaryDirectory() as folder:
        converter = Structure2Graph(ELEMENTS, cutoff=4.0)
        return MGLDataset(structures=structures, labels=labels, converter=converter, root=folder, save_cache=False)


def make_megnet() -> nn.Module:
    """Return a small network for energies."""
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


def make_tensornet() -> nn.Module:
    """Return a small network for energies and their gradients."""
    return TensorNet(ELEMENTS, units=8, nblocks=1, num_rbf=4, cutoff=4.0, is_intensive=False, use_warp=False)


def make_module(workers: int) -> pl.LightningModule:
    """Return a module with its default optimizer and scheduler."""
    return ModelLightningModule(make_megnet(), lr=1e-2, sync_dist=workers > 1)


def make_potential(workers: int) -> pl.LightningModule:
    """Return a module whose loss takes forces, which are gradients."""
    return PotentialLightningModule(make_tensornet(), lr=1e-2, sync_dist=workers > 1)


def make_loader(batch_size: int, shuffle: bool, forces: bool = False) -> DataLoader:
    """Return the loader for training, which shuffles, or that for validation."""
    training, validation = MGLDataLoader(salts(forces), salts(forces), batch_size=batch_size, num_workers=0)
    return training if shuffle else validation


def load(checkpoint: Path) -> pl.LightningModule:
    """Load a module, whose network is not among its hyperparameters."""
    return ModelLightningModule.load_from_checkpoint(checkpoint, model=make_megnet())


def load_potential(checkpoint: Path) -> pl.LightningModule:
    """Load a module for forces."""
    return PotentialLightningModule.load_from_checkpoint(checkpoint, model=make_tensornet())


def error(returned: tuple[dict[str, Tensor], int]) -> Tensor:
    """Return the one number that it predicts for a batch: the error."""
    return returned[0]["Total_Loss"].detach().reshape(1)


CLIENTS = (
    Client(
        name="matgl",
        make_module=make_module,
        make_data=make_loader,
        load=load,
        prediction=error,
        predicting_batch=1,
    ),
    Client(
        name="matgl-forces",
        make_module=make_potential,
        make_data=partial(make_loader, forces=True),
        load=load_potential,
        prediction=error,
        predicting_batch=1,
        options={"inference_mode": False},  # forces are gradients
    ),
)
