"""NequIP: energies and forces of small crystals, from its own losses, which are global, and its own datasets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from nequip.data import AtomicDataDict
from nequip.data.dataset import EMTTestDataset
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.train import NequIPLightningModule
from nequip.utils.global_state import set_global_state
from torch import Tensor
from torch.utils.data import DataLoader

from tests.clients.harness import Client

CUTOFF = 3.0
LOSS = {
    "_target_": "nequip.train.EnergyForceLoss",
    "coeffs": {"total_energy": 1.0, "forces": 1.0},
    "per_atom_energy": True,
}
NETWORK = {
    "_target_": "nequip.model.NequIPGNNModel",
    "seed": 1,
    "model_dtype": "float32",
    "type_names": ["Cu"],
    "r_max": CUTOFF,
    "num_layers": 2,
    "l_max": 1,
    "parity": False,
    "num_features": 4,
    "radial_mlp_width": 8,
    "avg_num_neighbors": 12.0,
    "per_type_energy_shifts": {"Cu": 0.0},
}


@contextmanager
def own_settings() -> Iterator[None]:
    """Compute in the type that the package sets for the whole process, and give back what other packages expect."""
    before = torch.get_default_dtype()
    set_global_state()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@cache
def crystals() -> EMTTestDataset:
    """Return distorted crystals of copper."""
    transforms = [ChemicalSpeciesToAtomTypeMapper(["Cu"]), NeighborListTransform(CUTOFF, backend="ase")]
    # A dataset each: the frames of one share the memory of their positions.
    frames = [EMTTestDataset(transforms, supercell=(2, 1, 1), num_frames=1, seed=seed) for seed in range(21)]
    frames[0].data_list, frames[0].num_frames = [frame.data_list[0] for frame in frames], len(frames)
    return frames[0]


def make_module(workers: int) -> pl.LightningModule:
    """Return a small network that knows the number of workers, as its own training script tells it."""
    module = NequIPLightningModule(
        NETWORK,
        num_datasets={"train": 1, "val": 0, "test": 0, "predict": 1},
        optimizer={"_target_": "torch.optim.Adam", "lr": 1e-2},
        loss=LOSS,
    )
    module.world_size = workers
    return module


def make_loader(batch_size: int, shuffle: bool) -> DataLoader:
    """Return the loader that its data modules make."""
    return DataLoader(crystals(), batch_size, shuffle=shuffle, collate_fn=AtomicDataDict.batched_from_list)


def load(checkpoint: Path) -> pl.LightningModule:
    """Load a module, as its own script does."""
    return NequIPLightningModule.load_from_checkpoint(checkpoint, weights_only=False)


def energies_and_forces(returned: dict[str, Any]) -> Tensor:
    """Return a row for each crystal of a batch."""
    energies = returned["total_energy"]
    return torch.cat([energies, returned["forces"].reshape(len(energies), -1)], dim=1).detach()


CLIENTS = (
    Client(
        name="nequip",
        make_module=make_module,
        make_data=make_loader,
        load=load,
        prediction=energies_and_forces,
        settings=own_settings,
        options={"inference_mode": False},  # forces are gradients
        own_options={"weigh_uneven_batches": False},  # its loss is that of all workers
    ),
)
