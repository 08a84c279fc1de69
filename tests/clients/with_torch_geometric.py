"""PyTorch Geometric: a usual module around its layers, with its own loader of graphs."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader as GraphLoader
from torch_geometric.nn import GCNConv, global_mean_pool

from tests.clients.harness import Client


class GraphRegression(pl.LightningModule):
    """Predicts a number for each graph."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.first, self.second = GCNConv(3, width), GCNConv(width, width)
        self.head = nn.Linear(width, 1)

    def forward(self, batch: Batch) -> Tensor:
        nodes = self.first(batch.x, batch.edge_index).tanh()
        nodes = self.second(nodes, batch.edge_index).tanh()
        return self.head(global_mean_pool(nodes, batch.batch)).flatten()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = nn.functional.mse_loss(self(batch), batch.y)
        self.log("train_loss", loss, on_epoch=True, sync_dist=True, batch_size=batch.num_graphs)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def make_loader(batch_size: int, shuffle: bool) -> DataLoader:
    """Return a loader of random graphs of unlike sizes, which do not divide evenly into batches."""
    generator = torch.Generator().manual_seed(1)
    graphs = []
    for number in range(29):
        nodes = 3 + number % 5
        x = torch.randn(nodes, 3, generator=generator)
        edges = torch.randint(nodes, (2, 3 * nodes), generator=generator)
        graphs.append(Data(x=x, edge_index=edges, y=x.sum().sin().view(1)))
    return GraphLoader(graphs, batch_size=batch_size, shuffle=shuffle)


CLIENTS = (
    Client(
        name="torch_geometric",
        make_module=lambda workers: GraphRegression(),
        make_data=make_loader,
        load=GraphRegression.load_from_checkpoint,
        prediction=lambda returned: returned,
    ),
)
