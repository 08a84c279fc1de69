"""Weights & Biases."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from itwinai.loggers.adapters.base import LoggerAdapter

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.loggers import Logger
    from matplotlib.figure import Figure

    from itwinai.run_info.run import RunFacts


class WandbAdapter(LoggerAdapter):
    """Facts in the run's config, files and models as artifacts; a run of its own for each worker, in one group."""

    takes: ClassVar[frozenset[str]] = frozenset({"file", "figure", "model", "rank_metrics"})

    def __init__(self, logger: Logger) -> None:
        super().__init__(logger)
        self.of_ranks: dict[int, Any] = {}

    @property
    def _run(self) -> Any:
        return self.logger.experiment  # type: ignore[attr-defined]

    @override
    def facts(self, trainer: Trainer, facts: RunFacts) -> None:
        self._run.config.update({"facts": facts.flat()}, allow_val_change=True)

    @override
    def file(self, path: Path) -> None:
        self._log_files(path.stem, "config", [path], path.parent)

    @override
    def hand_over(self, files: Sequence[Path], base: Path, patience: float) -> None:
        # As an artifact, which is a copy: files that a worker process saves otherwise are lost when its run ends.
        name = files[0].stem if len(files) == 1 else files[0].parent.name
        self._log_files(name, "report", files, base)

    def _log_files(self, name: str, kind: str, files: Sequence[Path], base: Path) -> None:
        import wandb

        artifact = wandb.Artifact(f"{name}-{self._run.id}", type=kind)
        for path in files:
            artifact.add_file(str(path), name=path.relative_to(base).as_posix())
        self._run.log_artifact(artifact)

    @override
    def figure(self, name: str, figure: Figure, step: int) -> None:
        import wandb

        self._run.log({name: wandb.Image(figure), "trainer/global_step": step})

    @override
    def model(self, module: LightningModule, example: Any) -> None:
        import torch
        import wandb

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "weights.pt")
            torch.save(module.state_dict(), path)
            artifact = wandb.Artifact(f"model-{self._run.id}", type="model", metadata={"class": type(module).__name__})
            artifact.add_file(str(path))
            logged = self._run.log_artifact(artifact)
            if not self._run.offline:
                logged.wait()

    @override
    def open_ranks(self, ranks: int) -> None:
        self.of_ranks = {rank: self._run_of(rank) for rank in range(ranks)}

    @override
    def rank_metrics(self, rank: int, metrics: Mapping[str, float], step: int) -> None:
        self.of_ranks[rank].log({**metrics, "trainer/global_step": step})

    def _run_of(self, rank: int) -> Any:
        import wandb

        main = self._run
        return wandb.init(
            project=main.project,
            entity=main.entity or None,
            group=main.group or main.id,
            name=f"{main.name or main.id} rank {rank}",
            job_type="rank",
            dir=self.logger.save_dir,
            mode="offline" if main.offline else "online",
            reinit="create_new",  # beside the run of the logger, which continues
            config={"rank": rank},
        )

    @override
    def finish(self, status: str) -> None:
        for run in self.of_ranks.values():
            run.finish(exit_code=0 if status == "success" else 1)
        self.of_ranks = {}

    @override
    def place(self) -> str:
        if self._run.offline:
            return f"wandb sync {self._run.dir.removesuffix('/files')}"
        return str(self._run.url)
