"""All clients that are tested in an environment."""

from __future__ import annotations

import os
from importlib import import_module

from tests.clients.harness import Client

VARIABLE = "ITWINAI_TESTS_CLIENTS"
"""Names the packages, with commas between; by default those of tests/clients/requirements.txt."""

_TOGETHER = "chemprop,torch_geometric,pytorch_forecasting,matgl,monai,scvi,nequip"

CLIENTS: tuple[Client, ...] = tuple(
    client
    for name in os.environ.get(VARIABLE, _TOGETHER).split(",")
    for client in import_module(f"tests.clients.with_{name}").CLIENTS
)
