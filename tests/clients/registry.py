"""All clients."""

from __future__ import annotations

from tests.clients import (
    with_chemprop,
    with_matgl,
    with_monai,
    with_nequip,
    with_pytorch_forecasting,
    with_scvi,
    with_torch_geometric,
)
from tests.clients.harness import Client

CLIENTS: tuple[Client, ...] = (
    with_chemprop.CLIENT,
    with_torch_geometric.CLIENT,
    with_pytorch_forecasting.CLIENT,
    with_matgl.CLIENT,
    with_monai.CLIENT,
    *with_scvi.CLIENTS,
    with_nequip.CLIENT,
)
