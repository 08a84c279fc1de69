"""The config file that a run leaves behind."""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from itwinai.facts.secrets import without_secrets


class SaveConfig(SaveConfigCallback):
    """Save the resolved config of a run, without secrets."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **kwargs: Any) -> None:
        super().__init__(parser, without_secrets(config), **kwargs)
