"""The runs that checks look at, each made once, when the first check asks for it."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from itwinai.checks.processes import RunFailedError, run_apart, run_group
from itwinai.checks.subject import Subject
from itwinai.checks.training import Run, Trained, train
from itwinai.checks.verdict import CheckFailedError
from itwinai.launchers.environment import RankInfo
from itwinai.strategies.registry import find_entry

WORKERS = 2
LIMIT = 120.0


class Session:
    """Makes the runs of one module, and keeps what they have left.

    Args:
        subject: what is checked.
        strategies: names of the strategies to compare.
        limit: seconds after which a run is ended.
        doing: is told what begins.
        tick: called many times a second while a run is waited for.
    """

    def __init__(
        self,
        subject: Subject,
        strategies: Sequence[str],
        limit: float = LIMIT,
        doing: Callable[[str], None] = lambda text: None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.subject = subject
        self.strategies = list(strategies)
        self.limit = limit
        self.doing = doing
        self.tick = tick
        self.folder = Path(tempfile.mkdtemp(prefix="itwinai-check-"))
        self.close = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self._made: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A run looks at what is to be done, and not at what others have left.
        return {name: vars(self)[name] for name in ("subject", "strategies", "limit", "folder")}

    # ------------------------------------------------------------------------------------------------ the runs

    def reference(self) -> Trained:
        """Return the run in one process: it notes and saves everything, evaluates and predicts.

        Raises:
            CheckFailedError: it has failed.
        """
        run = Run(
            self.root, save_to=self._subfolder("checkpoints"), notes=True, keys_to=self._keys_path("one"), evaluate=True
        )
        try:
            trained: Trained = self._once("one", "training in one process", lambda: self._apart("one", run))
        except RunFailedError as error:
            raise CheckFailedError(
                f"training in one process fails: {error.summary}",
                "Mend this first: `itwinai fit` fails alike.",
                error.at,
            ) from None
        return trained

    def again(self) -> Trained:
        """Return a second run in one process, with the same seed."""
        trained: Trained = self._once(
            "again", "the same again", lambda: self._apart("again", Run(self.root, notes=True))
        )
        return trained

    def perturbed(self) -> Trained:
        """Return a run in one process whose initial weights differ by rounding: how far it grows until the end."""
        run = Run(self.root, perturb=True)
        trained: Trained = self._once("perturbed", "what becomes of rounding", lambda: self._apart("perturbed", run))
        return trained

    def resumed(self, name: str) -> Trained:
        """Return the run that continues from a checkpoint of the reference."""
        run = Run(self.root, notes=True, resume=str(self.checkpoint(name)))
        key = f"resumed-{name}"
        trained: Trained = self._once(key, f"resuming {self.reference().saved[name]}", lambda: self._apart(key, run))
        return trained

    def group(self, strategy: str) -> list[Trained]:
        """Return what the workers of a strategy have left, by rank.

        Raises:
            RunFailedError: the run has failed.
        """
        evaluate = strategy == "ddp"
        run = Run(
            self.root,
            strategy,
            WORKERS,
            keys_to=self._keys_path("two") if evaluate else "",
            evaluate=evaluate,
            weights=self.reference().weights if evaluate else None,
        )
        made: list[Trained] = self._once(strategy, f"training under {strategy}", lambda: self._group(strategy, run))
        return made

    def two_workers(self) -> list[Trained]:
        """Return what two workers under DDP have left, by rank; nothing if they fail, which other checks tell."""
        try:
            return self.group("ddp")
        except RunFailedError:
            return []

    def resumed_group(self, strategy: str, checkpoint: str) -> Trained:
        """Return what a strategy makes of a checkpoint of the reference."""
        run = Run(self.root, strategy, WORKERS, resume=str(self.checkpoint(checkpoint)))
        key = f"resumed-{strategy}"
        made: list[Trained] = self._once(key, f"a checkpoint under {strategy}", lambda: self._group(key, run))
        return made[0]

    def once(self, name: str, text: str, work: Callable[[], Any], limit: float | None = None) -> Any:
        """Return what a function returns in a process of its own, the first time that it was called.

        Raises:
            RunFailedError: it has failed.
        """
        return self._once(name, text, lambda: run_apart(name, work, self.folder, limit or self.limit, self.tick))

    # ---------------------------------------------------------------------------------------------------- files

    @property
    def root(self) -> str:
        """Folder for what hooks of the user write."""
        return str(self._subfolder("root"))

    def checkpoint(self, name: str) -> Path:
        """Return the path of a checkpoint of the reference."""
        return self.folder / "checkpoints" / f"{name}.ckpt"

    def keys_file(self, run: str, rank: int) -> Path:
        """Return the file of the logged keys of a run: ``one`` or ``two`` workers."""
        return Path(self._keys_path(run).format(rank=rank))

    @property
    def local_strategies(self) -> list[str]:
        """The strategies whose workers are processes of this machine."""
        return [name for name in self.strategies if not self._uses_ray(name)]

    @property
    def ray_strategies(self) -> list[str]:
        """The strategies whose workers are Ray's."""
        return [name for name in self.strategies if self._uses_ray(name)]

    # --------------------------------------------------------------------------------------------------- inside

    def _once(self, name: str, text: str, make: Callable[[], Any]) -> Any:
        if name not in self._made:
            self.doing(text)
            try:
                self._made[name] = make()
            except RunFailedError as error:
                self._made[name] = error
        if isinstance(made := self._made[name], RunFailedError):
            raise made
        return made

    def _apart(self, name: str, run: Run) -> Any:
        return run_apart(name, partial(train, self.subject, run), self.folder, self.limit, self.tick)

    def _group(self, name: str, run: Run) -> list[Any]:
        self._import(run.strategy)

        def work(rank: RankInfo) -> Trained:
            return train(self.subject, run, rank)

        return run_group(name, work, run.workers, self.folder, self.limit, self.tick)

    @staticmethod
    def _import(strategy: str) -> None:
        """Import what workers need once, into this process: they are copies of it."""
        made = None if (entry := find_entry(strategy)) is None else entry.make()
        for name in getattr(made, "worker_imports", tuple)():
            with suppress(ModuleNotFoundError):  # a worker that needs it says so
                import_module(name)

    def _keys_path(self, run: str) -> str:
        return str(self.folder / f"keys-{run}-{{rank}}.jsonl")

    def _subfolder(self, name: str) -> Path:
        (self.folder / name).mkdir(exist_ok=True)
        return self.folder / name

    @staticmethod
    def _uses_ray(strategy: str) -> bool:
        entry = find_entry(strategy)
        return entry is not None and entry.uses_ray


def installed_strategies() -> list[str]:
    """Return the names of the strategies that a module is checked under by default."""
    names = (
        "ddp",
        "deepspeed_stage_0",
        "deepspeed_stage_1",
        "deepspeed_stage_2",
        "deepspeed_stage_3",
        "horovod",
        "ray",
    )
    return [name for name in names if all(find_spec(one) is not None for one in _packages(name))]


def _packages(strategy: str) -> tuple[str, ...]:
    entry = find_entry(strategy)
    return () if entry is None else entry.packages
