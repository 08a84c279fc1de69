"""scvi-tools: its training plan around a variational autoencoder of gene counts, with its own loader."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from anndata import AnnData
from scvi.data import AnnDataManager
from scvi.dataloaders import AnnDataLoader
from scvi.model import SCVI
from scvi.module import VAE
from scvi.train import TrainingPlan
from torch import Tensor
from torch.utils.data import DataLoader

from itwinai.strategies import DDPStrategy, HorovodStrategy
from tests.clients.harness import Client

GENES = 12


@cache
def counts() -> AnnDataManager:
    """Return counts of a few genes in a few cells."""
    random = np.random.default_rng(1)
    rates = random.gamma(2.0, 2.0, (3, GENES))[np.arange(45) % 3]
    data = AnnData(random.poisson(rates).astype(np.float32))
    SCVI.setup_anndata(data)
    return SCVI(data).adata_manager


class Cells(pl.LightningDataModule):
    """Makes its loaders in hooks: lightning refuses to predict with one that is made outside of them."""

    def __init__(self, batch_size: int, shuffle: bool) -> None:
        super().__init__()
        self.cells, self.batch_size, self.shuffle = counts(), batch_size, shuffle

    def train_dataloader(self) -> DataLoader:
        """Return its loader, whose sampler draws whole batches."""
        return AnnDataLoader(self.cells, batch_size=self.batch_size, shuffle=self.shuffle)

    def predict_dataloader(self) -> DataLoader:
        """Return the same, in the order of the cells."""
        return AnnDataLoader(self.cells, batch_size=self.batch_size)


def cells_in_order(batch_size: int, shuffle: bool) -> Cells:
    """Return cells that are not shuffled: orders come from the stream that the latent variables are drawn from."""
    return Cells(batch_size, shuffle=False)


def no_variance(encoded: Tensor) -> Tensor:
    """Return zeros that depend on all parameters."""
    return 0 * encoded


def make_autoencoder(**options: Any) -> VAE:
    """Return a small autoencoder."""
    return VAE(GENES, n_hidden=16, n_latent=3, **options)


def make_still_autoencoder() -> VAE:
    """Return one whose latent variables do not vary, and which computes with each sample by itself."""
    return make_autoencoder(
        dropout_rate=0.0,
        use_batch_norm="none",
        use_layer_norm="both",
        gene_likelihood="nb",
        var_activation=no_variance,
        extra_encoder_kwargs={"var_eps": 1e-20},
    )


def make_plan(module: VAE) -> pl.LightningModule:
    """Return the training plan of a module."""
    return TrainingPlan(module, lr=1e-2, weight_decay=0.0)


def load_usual(checkpoint: Path) -> pl.LightningModule:
    """Load a plan, whose autoencoder is not among its hyperparameters."""
    return TrainingPlan.load_from_checkpoint(checkpoint, module=make_autoencoder())


def load_still(checkpoint: Path) -> pl.LightningModule:
    """Load a plan around an autoencoder that draws nothing."""
    return TrainingPlan.load_from_checkpoint(checkpoint, module=make_still_autoencoder())


def latent_means(returned: tuple[dict[str, Any], ...]) -> Tensor:
    """Return where a batch's cells lie in the latent space."""
    means: Tensor = returned[0]["qz"].loc
    return means.reshape(-1, means.shape[-1])


# It has an encoder of the library size that is not used: its own trainer asks for DDP's search, too.
SEARCHING = {
    "ddp": lambda: DDPStrategy(find_unused_parameters=True),
    "horovod": lambda: HorovodStrategy(find_unused_parameters=True),
}

DRAWS = "latent variables and dropout are drawn on each worker, and batch statistics are those of its own samples"

CLIENTS = (
    Client(
        name="scvi-tools",
        make_module=lambda workers: make_plan(make_still_autoencoder()),
        make_data=cells_in_order,
        load=load_still,
        prediction=latent_means,
        strategies=SEARCHING,
    ),
    Client(
        name="scvi-tools-drawing",
        make_module=lambda workers: make_plan(make_autoencoder()),
        make_data=Cells,
        load=load_usual,
        prediction=latent_means,
        strategies=SEARCHING,
        differs={"ddp": DRAWS, "horovod": DRAWS, "deepspeed_stage_2": DRAWS},
    ),
)
