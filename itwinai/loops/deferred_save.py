"""Checkpoints that callbacks ask for in a hook are saved when all hooks are done."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from itwinai.compat import lightning_checkpoints

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

Action = Callable[[], None]


class DeferredSaves:
    """What callbacks want to be saved or removed, while hooks that come after theirs may still change the state.

    In the checkpoints the progress of the loops is that of the hook, as it is in those of Lightning, which can continue
    from them.

    Args:
        trainer: the trainer.

    Attributes:
        collects: whether hooks are being called, so that what they want to be saved has to wait.
        waiting: what waits, in order.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.collects = False
        self.waiting: list[Action] = []
        self._pending: set[str] = set()

    def add(self, action: Action) -> bool:
        """Do something when the hooks are done; return False if there are no hooks to wait for."""
        if self.collects:
            self.waiting.append(action)
        return self.collects

    def postpone(self, path: str, action: Action) -> bool:
        """Save or remove later; return False if it has to be done now.

        Args:
            path: what is written; empty if something is removed.
            action: does it.
        """
        if not self.collects:
            return False
        if not path:
            return self.add(action)
        self._pending.add(path)
        connector = lightning_checkpoints.checkpoint_connector(self.trainer)
        if not isinstance(connector, lightning_checkpoints.CheckpointConnector):
            return self.add(action)
        progress = connector.read_progress()

        def save() -> None:
            connector.earlier = progress
            try:
                action()
            finally:
                connector.earlier = None

        return self.add(save)

    def is_pending(self, path: str) -> bool:
        """Return whether a file waits to be written."""
        return path in self._pending

    def flush(self) -> None:
        """Do all that waits, as the hooks are done."""
        self.collects = False
        try:
            while self.waiting:
                self.waiting.pop(0)()
        finally:
            self.forget()

    def forget(self) -> None:
        """Leave undone what waits."""
        self.collects = False
        self.waiting.clear()
        self._pending.clear()


def when_hooks_are_done(trainer: Trainer, action: Action) -> None:
    """Do something after all hooks that are being called now, so that a checkpoint holds what they change."""
    saves = getattr(trainer.fit_loop, "saves", None)
    if not (isinstance(saves, DeferredSaves) and saves.add(action)):
        action()
