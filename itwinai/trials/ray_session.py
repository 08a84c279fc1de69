"""A trial that is a function which the user gives to Ray Tune, and in which he calls ``trainer.fit``."""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from itwinai.compat import ray as compat_ray
from itwinai.trials.channel import ChannelServer
from itwinai.trials.checkpoint_reference import read_reference, write_reference
from itwinai.trials.session import Decision, RemoteSession

if TYPE_CHECKING:
    from itwinai.launchers.ray_worker_pool import RayWorkerPool


class FunctionSession:
    """Reports through ``ray.tune.report`` in the process, and the thread or another, that runs the function.

    Args:
        folder: where the trial's checkpoints go.
        resume_path: the checkpoint that the trial resumes from.
    """

    def __init__(self, folder: str, resume_path: str | None) -> None:
        self.folder = folder
        self.resume_path = resume_path
        self.worker_pool: RayWorkerPool | None = None  # a search of the user's own keeps no workers

    def report(
        self, number: int, metrics: Mapping[str, float], checkpoint: str, best: str, again: bool = False
    ) -> Decision:
        """Report metrics, and wait for what the search says. Ray counts the reports itself."""
        from ray import tune

        with tempfile.TemporaryDirectory(prefix="itwinai-reference-") as folder:
            if checkpoint:
                write_reference(folder, checkpoint)
            try:
                tune.report(dict(metrics), checkpoint=tune.Checkpoint(folder) if checkpoint else None)
            except SystemExit:  # Ray ends a function with it, at any point
                return Decision.STOP
        return Decision.CONTINUE

    def saved(self, checkpoint: str, best: str) -> Decision:
        """Not needed: Ray asks a function for no checkpoints between its reports."""
        raise NotImplementedError

    @contextmanager
    def for_workers(self) -> Iterator[RemoteSession]:
        """Pass on the reports of workers in other processes inside the context.

        Yields:
            Their session.
        """
        import ray

        server = ChannelServer(ray.util.get_node_ip_address())
        ended = threading.Event()
        errors: list[Exception] = []

        def pass_on() -> None:
            while not ended.is_set():
                if (message := server.receive(0.2)) is None:
                    continue
                try:
                    decision = self.report(**message)
                except Exception as error:  # Ray's, or of its storage: the workers must not wait forever
                    errors.append(error)
                    decision = Decision.STOP
                server.reply({"decision": decision.value})

        thread = threading.Thread(target=pass_on, name="itwinai-reports", daemon=True)
        thread.start()
        try:
            yield RemoteSession(server.address, self.folder, self.resume_path)
        finally:
            ended.set()
            thread.join()
            server.close()
        if errors:
            raise errors[0]


def function_session() -> FunctionSession | None:
    """Return the session of the function that Ray Tune runs in this process; None if it runs none."""
    # In a trial ray.tune is loaded already; if it is not, there is nothing to ask.
    if "ray.tune" not in sys.modules:
        return None
    storage = compat_ray.tune_storage()
    if storage is None:
        return None
    from ray import tune

    checkpoint = tune.get_checkpoint()
    resume_path = None
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            resume_path = read_reference(folder)
    return FunctionSession(storage, resume_path)
