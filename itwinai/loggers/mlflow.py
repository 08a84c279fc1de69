"""Log to MLflow during training."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch.loggers import MLFlowLogger as LightningMLFlowLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from itwinai.compat.jsonargparse import unlisted
from itwinai.errors import require
from itwinai.launchers.environment import find_outer_environment
from itwinai.loggers.async_queue import FIRST_PAUSE, LONGEST_PAUSE, Delivery
from itwinai.loggers.mlflow_client import (
    BATCH,
    VARIABLE,
    AwayError,
    End,
    LoggerError,
    Point,
    Record,
    check_answers,
    clean_output,
    is_server,
    milliseconds,
    quiet_database,
    resend,
    send,
    unsent_points,
    variable_kept,
    write_unsent,
)
from itwinai.run_info.redaction import without_secrets
from itwinai.warn import warn_user

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

__all__ = ["LoggerError", "MLFlowLogger", "resend"]

log = logging.getLogger(__name__)

FAILED_TIMEOUT = 10.0
"""Most seconds for which a run that has failed waits for a server: the user, or a scheduler, wants it to end."""

SAFE_AFTER = 10.0
"""Seconds after which what does not arrive goes to a file, before it is tried again: a run may be killed any time."""

_STATUS = {"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED"}
_NOWHERE = "http://not-used.invalid"
_FORBIDDEN = re.compile(r"[^a-zA-Z0-9_/. -]+")  # as Lightning's


if TYPE_CHECKING:
    _Unlisted = LightningMLFlowLogger
else:
    _Unlisted = unlisted(LightningMLFlowLogger)


class MLFlowLogger(_Unlisted):
    """Log to MLflow as Lightning's logger of this name does, without waiting for the server.

    Metrics go to a queue, and a thread of rank 0 sends them in batches, at the latest after a second. A server that is
    slow, unreachable for some time, or restarted costs the run neither time nor metrics. A server that does not answer
    at the start is an error.

    Args:
        experiment_name: name of the experiment, which is created if it does not exist.
        run_name: name of the run.
        tracking_uri: address of the server, or of a database (``sqlite:///...``). By default that in the variable
            ``MLFLOW_TRACKING_URI``; without one no server is needed: everything is in ``mlflow.db`` and
            ``mlartifacts`` in ``save_dir``, which ``mlflow ui --backend-store-uri sqlite:///mlflow.db`` shows.
        tags: tags of the run.
        save_dir: folder for local files: the database, if there is no address, and metrics that the server did not
            accept in time. By default the working folder.
        log_model: upload checkpoints: ``True`` those that are left at the end, ``"all"`` each one.
        prefix: prefix of the names of all metrics.
        artifact_location: where to store the artifacts of a new experiment; by default the server decides.
        run_id: ID of a run to continue.
        synchronous: if true, every call waits until the server has stored the values.
        flush_timeout: seconds for which the end of a run waits for a slow or unreachable server. Unsent metrics are in
            a file; if the server does not come back, the file stays and a warning says how to send it.

    Raises:
        MissingPackageError: MLflow is not installed.
        LoggerError: raised later by any method: no server answers at the address, or it rejects what is logged.
    """

    def __init__(
        self,
        experiment_name: str = "lightning_logs",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: dict[str, Any] | None = None,
        save_dir: str | None = None,
        log_model: bool | Literal["all"] = False,
        prefix: str = "",
        artifact_location: str | None = None,
        run_id: str | None = None,
        synchronous: bool | None = None,
        flush_timeout: float = 600.0,
    ) -> None:
        require("mlflow", "Install it with `pip install 'itwinai[mlflow]'`.", "The MLflow logger")
        self.folder = Path(save_dir or ".").absolute()
        address = tracking_uri or os.environ.get(VARIABLE)
        self.is_embedded = not address
        if not address:
            require("sqlalchemy", "Install it with `pip install 'itwinai[mlflow]'`.", "MLflow without a server")
            self.folder.mkdir(parents=True, exist_ok=True)
            address = f"sqlite:///{self.folder / 'mlflow.db'}"
            artifact_location = artifact_location or (self.folder / "mlartifacts").as_uri()
        self.address = address
        self.prefix = prefix
        self.log_model = log_model
        self.synchronous = synchronous
        self.flush_timeout = flush_timeout
        with quiet_database():
            super().__init__(
                experiment_name=experiment_name,
                run_name=run_name,
                # MLflow sets up a database at once, which several processes must not do at the same time.
                tracking_uri=address if is_server(address) or _rank() == 0 else _NOWHERE,
                tags=tags,
                log_model=log_model,
                prefix=prefix,
                artifact_location=artifact_location,
                run_id=run_id,
                synchronous=synchronous,
            )
        self._delivery: Delivery[Record] = Delivery(
            self._send, _is_transient, self._set_aside, f"MLflow at {without_secrets(address)}", batch=BATCH
        )
        self._opened_in = 0  # process
        self._names: dict[str, str] = {}
        self._unsent = Path()  # file with what has not arrived
        self._gave_up = False  # the user did not want to wait for it

    @property
    def experiment(self) -> MlflowClient:
        """MLflow's client, which is asked at once, without the queue.

        Raises:
            LoggerError: no server answers at the address.
        """
        if self._opened_in == os.getpid() or _known_rank() != 0:
            return super().experiment
        if is_server(self.address):
            check_answers(self.address)
        with variable_kept():
            client = super().experiment
        self._opened_in = os.getpid()
        return client

    @property
    def save_dir(self) -> str | None:
        """Folder below which the run's local files go, by experiment and run; None if the trainer chooses it."""
        return str(self.folder / "mlruns") if self.is_embedded else super().save_dir

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Queue metrics, with the time of now.

        Args:
            metrics: value by name.
            step: by default 0.

        Raises:
            LoggerError: the server is not there at the start, or has not taken something that was logged before.
        """
        from mlflow import get_active_model_id

        if self._opened_in != os.getpid():
            _ = self.experiment
        now, model_id = milliseconds(), get_active_model_id()
        for key, value in metrics.items():
            if isinstance(value, str):
                log.warning("Discarding metric with string value %s=%s.", key, value)
                continue
            name = self._names.get(key) or self._name_of(key)
            self._delivery.put(Point(name, float(value), now, step or 0, model_id))
        if self.synchronous:
            self.flush()

    @rank_zero_only
    def flush(self, timeout: float | None = None) -> bool:
        """Wait until the server has everything; what it does not take in time goes to a file.

        Args:
            timeout: in seconds; by default ``flush_timeout``.

        Returns:
            Whether it has everything.

        Raises:
            LoggerError: the server does not take something.
        """
        timeout = self.flush_timeout if timeout is None else timeout
        deadline = time.monotonic() + timeout
        try:
            sent = self._delivery.flush(timeout, SAFE_AFTER)
            return (sent and not self._unsent.is_file()) or self._resend_until(deadline)
        except KeyboardInterrupt:
            self._gave_up = True
            raise

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Wait until the server has everything, and end the run.

        Args:
            status: ``success``, ``finished`` or ``failed``.

        Raises:
            LoggerError: the server does not take something, and the run has not failed anyway.
        """
        if self._opened_in != os.getpid():
            return
        failed = _STATUS.get(status) == "FAILED"
        timeout = min(self.flush_timeout, FAILED_TIMEOUT) if failed else self.flush_timeout
        try:
            self._delivery.put(End(_STATUS.get(status, status), milliseconds()))
            arrived = self.flush(0 if self._gave_up else timeout)
        except LoggerError:
            if not failed:
                raise
            arrived = False  # that is why it has failed, or is in the warning
        finally:
            self._delivery.close()
        if arrived:
            with clean_output(self.address):
                super().finalize(status)

    def _name_of(self, key: str) -> str:
        name = f"{self.prefix}{self.LOGGER_JOIN_CHAR}{key}" if self.prefix else key
        self._names[key] = allowed = _FORBIDDEN.sub("", name)
        if allowed != name:
            warn_user(
                f"MLflow allows only letters, digits, '_', '/', '.', '-' and ' ' in names of metrics: {name} is logged "
                f"as {allowed}.",
            )
        return allowed

    def _send(self, records: list[Record]) -> None:
        assert self.run_id is not None
        send(self.address, self.run_id, records)

    def _resend_until(self, deadline: float) -> bool:
        """Try again to send what is in the file; return whether it has arrived."""
        pause = FIRST_PAUSE
        if (left := deadline - time.monotonic()) > 1:
            log.warning(
                "Waiting up to %.0f s more for MLflow at %s to take %d metrics. To stop waiting, press Ctrl-C: they "
                "stay in %s.",
                left,
                without_secrets(self.address),
                unsent_points(self._unsent),
                self._unsent,
            )
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE)
            try:
                resend(self._unsent, self.address)
            except AwayError:
                continue
            self._unsent.unlink()
            return True
        return False

    def _set_aside(self, records: Sequence[Record], reason: str) -> None:
        assert self.run_id is not None
        self._unsent = write_unsent(self.folder, self.address, self.run_id, records)
        points = unsent_points(self._unsent)  # those of earlier waits too
        what = f"{points} metrics" if points else "The end"
        so_far = "" if self._gave_up else ", which is removed if they arrive before the run has ended"
        warn_user(
            f"{what} of run {self.run_id} could not be sent to MLflow at {without_secrets(self.address)} ({reason}). "
            f"They are in {self._unsent}{so_far}. To send them later:\n"
            f'python -c "from itwinai.loggers.mlflow import resend; resend({str(self._unsent)!r})"'
        )


def _is_transient(error: Exception) -> bool:
    return isinstance(error, AwayError)


def _rank() -> int:
    """Return the rank of this process, which may be that of a worker before its strategy knows."""
    environment = find_outer_environment()
    return environment.global_rank() if environment is not None else _known_rank()


def _known_rank() -> int:
    """Return the rank as Lightning knows it."""
    return getattr(rank_zero_only, "rank", 0)
