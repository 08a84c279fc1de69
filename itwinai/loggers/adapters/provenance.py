"""Provenance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from itwinai.loggers.adapters.base import LoggerAdapter

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from itwinai.run_info.run import RunFacts


class ProvenanceAdapter(LoggerAdapter):
    """Facts as entities and agents of the provenance document."""

    @override
    def facts(self, trainer: Trainer, facts: RunFacts) -> None:
        self.logger.describe(trainer, facts)  # type: ignore[attr-defined]

    @override
    def place(self) -> str:
        return str(self.logger.path)  # type: ignore[attr-defined]
