"""Talk to an MLflow server, or to a database in its place: send metrics and the end of a run, now or later.

Requests go through MLflow's own function, so that its credentials, certificates and proxies count, but without its
retries: these last for minutes, in which you would see nothing.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from itwinai.errors import LoggerError
from itwinai.run_info.redaction import HIDDEN, without_secrets

VARIABLE = "MLFLOW_TRACKING_URI"
"""The environment variable with the address of the server."""

BATCH = 1000
"""Most metrics that MLflow takes at once."""

_TRIES, _TIMEOUT = 3, 5.0  # until an address where nothing answers is an error
_TOO_EARLY_OR_MANY = (408, 425, 429)


class AwayError(LoggerError):
    """A logger's server does not answer, or not now: to ask again later may help."""


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a metric.

    Attributes:
        key: name of the metric.
        value: also nan or infinite.
        timestamp: when it was logged, in milliseconds since 1970.
        step: of the run.
        model_id: of the model that MLflow attributes it to, if there is one.
    """

    key: str
    value: float
    timestamp: int
    step: int
    model_id: str | None = None


@dataclass(frozen=True, slots=True)
class End:
    """The end of a run.

    Attributes:
        status: ``FINISHED`` or ``FAILED``.
        end_time: in milliseconds since 1970.
    """

    status: str
    end_time: int


Record = Point | End


def milliseconds() -> int:
    """Return the time of now as MLflow has it."""
    return int(time.time() * 1000)


def is_server(tracking_uri: str) -> bool:
    """Return whether an address is that of a server, and not of a database or of something that a plugin knows."""
    return urlsplit(tracking_uri).scheme in ("http", "https")


def check_answers(tracking_uri: str, tries: int = _TRIES) -> None:
    """Check that a server is there; any answer counts.

    Args:
        tracking_uri: its address.
        tries: how often to ask, within seconds.

    Raises:
        AwayError: nothing answers.
    """
    for trial in range(tries):
        time.sleep(trial / 2)
        try:
            _request(tracking_uri, "GET", "/health", timeout=_TIMEOUT)
            return
        except AwayError as error:
            reason = error
    raise AwayError(
        f"No MLflow server answers at {without_secrets(tracking_uri)}: {reason}. Start one (`mlflow server "
        "--backend-store-uri sqlite:///mlflow.db --port 5000`), check the address (tracking_uri, or the variable "
        "MLFLOW_TRACKING_URI), or log without a server: --logger csv."
    )


def send(tracking_uri: str, run_id: str, records: Sequence[Record]) -> None:
    """Send records of a run, at most `BATCH`. To send some twice does no harm: MLflow keeps equal points once.

    Raises:
        AwayError: the server does not answer, or not now.
        LoggerError: it does not take them.
    """
    from mlflow.exceptions import MlflowException

    points = [record for record in records if isinstance(record, Point)]
    ends = [record for record in records if isinstance(record, End)]
    try:
        if is_server(tracking_uri):
            if points:
                _post(tracking_uri, "log-batch", {"run_id": run_id, "metrics": [_as_json(point) for point in points]})
            for end in ends:
                _post(tracking_uri, "update", {"run_id": run_id, **_as_json(end)})
        else:
            _write(tracking_uri, run_id, points, ends)
    except MlflowException as error:
        text = without_secrets(str(error))
        if _may_pass(error.get_http_status_code()):
            raise AwayError(text) from None
        raise LoggerError(
            f"MLflow at {without_secrets(tracking_uri)} rejects what run {run_id} logs: {text}. Check that the "
            "run was not deleted, that the names of metrics are valid, and that you may write there "
            "(MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN)."
        ) from None


def _write(tracking_uri: str, run_id: str, points: Iterable[Point], ends: Iterable[End]) -> None:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri)
    client.log_batch(run_id, metrics=[Metric(**asdict(point)) for point in points])
    for end in ends:
        client.set_terminated(run_id, end.status, end.end_time)


def _post(tracking_uri: str, what: str, content: dict[str, Any]) -> None:
    from mlflow.utils.rest_utils import verify_rest_response

    endpoint = f"/api/2.0/mlflow/runs/{what}"
    response = _request(tracking_uri, "POST", endpoint, json=content)
    text = response.text.strip()
    # A proxy in between may know nothing of a server that is being started again, or show a page for people.
    from_between = response.status_code in (200, 404) and text and not text.startswith("{")
    if from_between or _may_pass(response.status_code):
        raise AwayError(without_secrets(f"it answers {response.status_code}: {text[:200]}"))
    verify_rest_response(response, endpoint)


def _request(tracking_uri: str, method: str, endpoint: str, **options: Any) -> Any:
    """Ask a server once, and return its answer."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    credentials = get_default_host_creds(tracking_uri.rstrip("/"))
    try:
        return http_request(credentials, endpoint, method, max_retries=0, raise_on_status=False, **options)
    except MlflowException as error:  # it holds the address
        cause: BaseException = error
        while (before := cause.__cause__ or cause.__context__) is not None:
            cause = before
        raise AwayError(without_secrets(str(cause))) from None


def _may_pass(status: int) -> bool:
    return status >= 500 or status in _TOO_EARLY_OR_MANY


def _as_json(record: Record) -> dict[str, Any]:
    """Return a record as MLflow's REST interface writes it."""
    if isinstance(record, End):
        return {"status": record.status, "end_time": record.end_time}
    # JSON has no nan and no infinity: they go as "NaN" and "-Infinity".
    value = record.value if math.isfinite(record.value) else json.dumps(record.value)
    fields = {"key": record.key, "value": value, "timestamp": record.timestamp, "step": record.step}
    return fields if record.model_id is None else {**fields, "model_id": record.model_id}


def write_unsent(folder: Path, tracking_uri: str, run_id: str, records: Sequence[Record]) -> Path:
    """Write records that could not be sent to a file, for `resend`; return its path.

    The file is in the folder, or else in that for temporary files. Secrets of the address are left out.
    """
    lines = [{"tracking_uri": without_secrets(tracking_uri), "run_id": run_id}, *map(_as_json, records)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    name = f"mlflow-unsent-{run_id}.jsonl"
    try:
        return _append(folder / name, text)
    except OSError:  # read only, or full
        return _append(Path(tempfile.gettempdir(), name), text)


def unsent_points(path: Path) -> int:
    """Return the number of metrics in a file of `write_unsent`; 0 if there is no file."""
    if not path.is_file():
        return 0
    return sum("key" in json.loads(line) for line in path.read_text("utf-8").splitlines())


def _append(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
    return path


def resend(path: str | os.PathLike[str], tracking_uri: str | None = None) -> int:
    """Send the metrics of a file that a run has left because its server was away.

    The file stays. To send it twice does no harm.

    Args:
        path: of the file, as the run has named it.
        tracking_uri: address of the server, if another one than the run's. It has to be given, here or in
            ``MLFLOW_TRACKING_URI``, if the run's had a secret in it.

    Returns:
        The number of metrics.

    Raises:
        LoggerError: the server does not answer, or does not take them, or its address is not known.
    """
    from lightning.pytorch.utilities.rank_zero import rank_zero_info

    number = 0
    lines = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]
    for run, records in _by_run(lines):
        address = tracking_uri or run["tracking_uri"]
        if HIDDEN in address:
            address = os.environ.get(VARIABLE, "")
        if not address:
            raise LoggerError(
                f"{path} is for {run['tracking_uri']}, whose secret was not written to the file. Give the whole "
                "address in the variable MLFLOW_TRACKING_URI, or as resend(path, tracking_uri)."
            )
        if is_server(address):
            check_answers(address)
        for first in range(0, len(records), BATCH):
            send(address, run["run_id"], records[first : first + BATCH])
        points = sum(isinstance(record, Point) for record in records)
        rank_zero_info(f"{points} metrics of run {run['run_id']} sent to {without_secrets(address)}")
        number += points
    return number


def _by_run(lines: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], list[Record]]]:
    run: dict[str, Any] = {}
    for is_head, group in groupby(lines, key=lambda line: "run_id" in line):
        if is_head:
            *_, run = group
        else:
            yield run, [_record(fields) for fields in group]


def _record(fields: dict[str, Any]) -> Record:
    return End(**fields) if "status" in fields else Point(**{**fields, "value": float(fields["value"])})


def where_to_look(tracking_uri: str, experiment_id: str, run_id: str) -> str:
    """Return the page of a run, or for a database the command that shows it; without secrets."""
    shown: str = without_secrets(tracking_uri)
    if shown.startswith("http"):
        return f"{shown}/#/experiments/{experiment_id}/runs/{run_id}"
    return f"mlflow ui --backend-store-uri {shown}"


@contextmanager
def clean_output(address: str) -> Iterator[None]:
    """Hide the address's secrets in what MLflow prints: where the run can be seen."""
    if without_secrets(address) == address:
        yield
        return
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        print(without_secrets(printed.getvalue()), end="")


@contextmanager
def quiet(level: int, *names: str) -> Iterator[None]:
    """Silence some of MLflow's loggers below a level."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, old in zip(loggers, before, strict=True):
            logger.setLevel(old)


def quiet_database() -> AbstractContextManager[None]:
    """Silence what MLflow logs about each step of setting up its tables."""
    return quiet(logging.WARNING, "mlflow.store.db.utils")


@contextmanager
def variable_kept() -> Iterator[None]:
    """Keep the variable that MLflow sets: the next logger without an address must not go where this one goes."""
    before = os.environ.get(VARIABLE)
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before
