"""The runs of a search in MLflow: one for the search, and one for each trial nested below it.

They go through MLflow's client: its fluent functions have one active run per process, which belongs to the user.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from itwinai.errors import ConfigurationError, LoggerError, require
from itwinai.io.atomic import write_whole
from itwinai.loggers.mlflow_client import (
    VARIABLE,
    End,
    Point,
    Record,
    check_answers,
    clean_output,
    is_server,
    milliseconds,
    quiet_database,
    send,
    where_to_look,
)
from itwinai.reporting.formatting import value_text
from itwinai.run_info.redaction import without_secrets
from itwinai.run_info.serialization import plain
from itwinai.trials.records import SearchRecord, Status
from itwinai.tune.logger_config import Entry, entries_of

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PARENT, SEARCH_ID, TRIAL = "mlflow.parentRunId", "itwinai.search_id", "itwinai.trial"
"""Names of tags; MLflow's pages look for the first one."""

_SQLITE = "sqlite:///"
_FORBIDDEN = re.compile(r"[^a-zA-Z0-9_/.: -]+")
IDENTITY = "search-id.json"
"""The file in the folder of a search with what tells it from others of the same name."""

_ROLE = {"itwinai.role": "search"}
_DONE: dict[Status, str] = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}
_BEST = "itwinai.best."

_LONGEST_KEY, _LONGEST_VALUE, _BATCH = 250, 500, 100  # what every version of MLflow accepts


@dataclass(frozen=True)
class MlflowLocation:
    """Where a logger's runs are.

    Attributes:
        address: of the server or the database.
        experiment: its name.
        artifacts: where the files of the experiment go, if it is created; None leaves it to the server.
    """

    address: str = field(repr=False)
    experiment: str
    artifacts: str | None = None


def location_of(entry: Entry, search: str, folder: Path, address: str = "") -> MlflowLocation:
    """Return where the runs of an MLflow logger are.

    That is where the user has said; otherwise the server that the variable ``MLFLOW_TRACKING_URI`` names, or else one
    database in the folder of the search, which all trials share.

    Args:
        entry: the logger.
        search: name of the search, and of the experiment if the user has named none.
        folder: of the search.
        address: what is taken in the place of the variable and the database.
    """
    given = entry.arguments
    address = str(given.get("tracking_uri") or address or os.environ.get(VARIABLE) or "")
    if not address and not entry.is_ours and "save_dir" in given:
        address = f"file:{Path(given['save_dir']).absolute()}"  # as Lightning has it
    if not address:
        address = f"{_SQLITE}{Path(given.get('save_dir') or folder, 'mlflow.db').absolute()}"
    if address.startswith(_SQLITE) and ":memory:" not in address:
        # Relative to the working folder, which is another one in a trial.
        address = f"{_SQLITE}{Path(address.removeprefix(_SQLITE)).absolute()}"
        beside = (Path(address.removeprefix(_SQLITE)).parent / "mlartifacts").as_uri()
    else:
        beside = None
    return MlflowLocation(address, given.get("experiment_name") or search, given.get("artifact_location") or beside)


class Runs:
    """The runs of an experiment, which is created if there is none.

    Args:
        place: where it is.

    Raises:
        MissingPackageError: MLflow is not installed.
        LoggerError: no server answers at the address, or it does not do what is asked.
        ConfigurationError: the experiment was deleted.
    """

    def __init__(self, place: MlflowLocation) -> None:
        require("mlflow", "Install it with `pip install 'itwinai[mlflow]'`.", "The MLflow logger")
        self.place = place
        if is_server(place.address):
            check_answers(place.address)
        elif place.address.startswith(_SQLITE):
            require("sqlalchemy", "Install it with `pip install 'itwinai[mlflow]'`.", "MLflow without a server")
            Path(place.address.removeprefix(_SQLITE)).parent.mkdir(parents=True, exist_ok=True)
        with self.asking():
            from mlflow.tracking import MlflowClient

            self.client: MlflowClient = MlflowClient(place.address)
            self.experiment_id = self._experiment()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Raise what MLflow raises as `LoggerError`, and keep the address's secrets out of what it prints."""
        from mlflow.exceptions import MlflowException

        try:
            with quiet_database(), clean_output(self.place.address):
                yield
        except MlflowException as error:
            text = without_secrets(str(error))
            shown = without_secrets(self.place.address)
            raise LoggerError(
                f"MLflow at {shown} rejected a request of the search: {text}. Check the address (tracking_uri, "
                "or the variable MLFLOW_TRACKING_URI) and that you may write there (MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN)."
            ) from None

    def create(self, name: str, tags: Mapping[str, Any]) -> str:
        """Make a run, and return its id.

        Args:
            name: of the run.
            tags: in addition to those that tell of the user and the code, which MLflow finds by itself.
        """
        from mlflow.tracking.context.registry import resolve_tags

        known = {key: str(value) for key, value in resolve_tags(dict(tags)).items()}
        with self.asking():
            run_id: str = self.client.create_run(self.experiment_id, tags=known, run_name=name).info.run_id
        return run_id

    def tag(self, run_id: str, tags: Mapping[str, Any]) -> None:
        """Set tags of a run, also such as it has."""
        from mlflow.entities import RunTag

        entities = [RunTag(as_key(name), str(value)) for name, value in tags.items()]
        with self.asking():
            for first in range(0, len(entities), _BATCH):
                self.client.log_batch(run_id, tags=entities[first : first + _BATCH])

    def parameters(self, run_id: str, parameters: Mapping[str, str]) -> None:
        """Log parameters, as `as_parameters` returns them."""
        from mlflow.entities import Param

        entities = [Param(name, value) for name, value in parameters.items()]
        with self.asking():
            for first in range(0, len(entities), _BATCH):
                self.client.log_batch(run_id, params=entities[first : first + _BATCH])

    def reopen(self, run: Any) -> str:
        """Let one of MLflow's runs continue if it has ended, and return its id."""
        if run.info.status != "RUNNING":
            with self.asking():
                self.client.update_run(run.info.run_id, status="RUNNING")
        return str(run.info.run_id)

    def find(self, tags: Mapping[str, str]) -> Iterator[Any]:
        """Yield MLflow's runs that have some tags, the newest first.

        Args:
            tags: values without quotes.
        """
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        token: str | None = None
        while token != "":
            with self.asking():
                page = self.client.search_runs(
                    [self.experiment_id], wanted, order_by=["attributes.start_time DESC"], page_token=token
                )
            yield from page
            token = page.token or ""

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = self.place.experiment
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name, self.place.artifacts))
            except MlflowException:
                # Another search may have made it in this moment.
                if (found := self.client.get_experiment_by_name(name)) is None:
                    raise
        if found.lifecycle_stage == "deleted":
            raise ConfigurationError(
                f"The experiment '{name}' was deleted at {without_secrets(self.place.address)}, and its name is not "
                f"free. Restore it (`mlflow experiments restore --experiment-id {found.experiment_id}`), or give the "
                "search another name."
            )
        return str(found.experiment_id)


def search_id(folder: Path) -> str:
    """Return the ID that distinguishes searches of the same name; a resumed search keeps it.

    Args:
        folder: of the search, where it is written at the first time.
    """
    path = folder / IDENTITY
    if not path.exists():
        write_whole(path, json.dumps({"search_id": uuid.uuid4().hex[:12]}) + "\n")
    return str(json.loads(path.read_text(encoding="utf-8"))["search_id"])


@dataclass(frozen=True)
class ParentRun:
    """The run of a search.

    Attributes:
        run_id: its id.
        experiment_id: that of its experiment.
        place: where it is.
    """

    run_id: str
    experiment_id: str
    place: MlflowLocation

    @property
    def tracking_uri(self) -> str:
        """The address of MLflow, with its login."""
        return self.place.address

    def finish(
        self, record: SearchRecord, status: Literal["FINISHED", "KILLED", "FAILED"], files: Iterable[Path] = ()
    ) -> None:
        """End the run, with what was found and how the trials have ended.

        The best value of each objective is logged under the objective's name, so that in a table of runs it stands
        above those of the trials. A trial whose process was ended before it could say so gets its status.

        Args:
            record: the search.
            status: how it has ended.
            files: reports that are kept with the run.

        Raises:
            LoggerError: no server answers, or it rejects what is logged. Then all is as it was, or some of it is
                there; the same call later completes it.
        """
        runs = Runs(self.place)
        reached, now = {**_counts(record), **_best_values(record)}, milliseconds()
        self._send(self.run_id, [Point(name, value, now, len(record.trials)) for name, value in reached.items()])
        self._tag_best(runs, _best_parameters(record))
        with runs.asking():
            for file in files:
                runs.client.log_artifact(self.run_id, str(file))
        self._end_trials(runs, record)
        self._end(self.run_id, status)

    def location_text(self) -> str:
        """Return where a person finds the run, or how to look at it."""
        return where_to_look(self.place.address, self.experiment_id, self.run_id)

    def _end_trials(self, runs: Runs, record: SearchRecord) -> None:
        known = {trial.name: _DONE.get(trial.status, "KILLED") for trial in record.trials}
        latest: set[str] = set()
        for run in runs.find({PARENT: self.run_id}):
            name = run.data.tags.get(TRIAL, "")
            # Runs that a trial has begun before its parameters were changed have not failed.
            status = known.get(name, "KILLED") if name not in latest else "FINISHED"
            latest.add(name)
            if run.info.status != status:
                self._end(run.info.run_id, status, run.info.end_time)

    def _tag_best(self, runs: Runs, tags: Mapping[str, str]) -> None:
        with runs.asking():
            before = runs.client.get_run(self.run_id).data.tags
            for name in before:
                if name.startswith(_BEST) and name not in tags:  # before the search was resumed, another was the best
                    runs.client.delete_tag(self.run_id, name)
        runs.tag(self.run_id, tags)

    def _end(self, run_id: str, status: str, ended: int | None = None) -> None:
        self._send(run_id, [End(status, ended or milliseconds())])

    def _send(self, run_id: str, records: Sequence[Record]) -> None:
        with clean_output(self.place.address):
            send(self.place.address, run_id, records)


def open_parent_run(
    given: Any, search: str, folder: Path, settings: Mapping[str, Any] | None = None
) -> ParentRun | None:
    """Return the run of a search in MLflow; None if no logger of its config is MLflow's.

    The experiment, and a database if there is no server, are made here: trials that begin at the same time would make
    them several times. A search that is resumed continues in the run that it has.

    Args:
        given: what the config has at ``trainer.logger``.
        search: name of the search, of the run, and of the experiment if the config names none.
        folder: of the search.
        settings: of the search, which become tags, without secrets.

    Raises:
        ConfigurationError: there is no logger of a name, or the experiment was deleted.
        MissingPackageError: MLflow is not installed.
        LoggerError: no server answers at the address, which takes seconds, or it does not do what is asked.
    """
    entry = next((one for one in entries_of(given) if isinstance(one, Entry) and one.kind == "mlflow"), None)
    if entry is None:
        return None
    runs = Runs(location_of(entry, search, folder))
    own = {SEARCH_ID: search_id(folder), **_ROLE}
    tags = {
        **(entry.arguments.get("tags") or {}),
        "itwinai.search": search,
        **{f"itwinai.search.{name}": value for name, value in as_parameters(settings or {}).items()},
        **own,
    }
    earlier = next(runs.find(own), None)
    if earlier is None:
        return ParentRun(runs.create(search, tags), runs.experiment_id, runs.place)
    runs.tag(earlier.info.run_id, tags)
    return ParentRun(runs.reopen(earlier), runs.experiment_id, runs.place)


def _best_values(record: SearchRecord) -> dict[str, float]:
    values = [found for trial in record.ranked() if (found := record.values(trial)) is not None]
    best = {}
    for index, objective in enumerate(record.objectives):
        if reached := [value[index] for value in values]:
            best[as_key(objective.metric)] = min(reached) if objective.mode == "min" else max(reached)
    return best


def _counts(record: SearchRecord) -> dict[str, int]:
    counted = Counter(trial.status for trial in record.trials)
    # Also those that are 0, in the place of what was there before the search was resumed.
    return {f"trials/{status}": counted[status] for status in get_args(Status)} | {"trials": len(record.trials)}


def _best_parameters(record: SearchRecord) -> dict[str, str]:
    """Return the best trial's name and parameters as tags, which a resumed search can set again."""
    front = record.pareto_front()
    names = ", ".join(trial.name for trial in front)
    if len(front) != 1:
        return {f"{_BEST}trials": names} if names else {}
    found = as_parameters(front[0].parameters)
    return {f"{_BEST}trial": names, **{f"{_BEST}{name}": value for name, value in found.items()}}


def trial_run(place: MlflowLocation, name: str, tags: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    """Return the id of the run that a trial logs to: the one that it has begun earlier, or a new one.

    What a run was created with cannot be changed in MLflow. A trial that has got other parameters since, in population
    based training, begins another run.

    Args:
        place: where it is.
        name: of a new run.
        tags: of a new run; by `SEARCH_ID` and `TRIAL` the earlier one is found.
        parameters: of the trial, by path.
    """
    runs, wanted = Runs(place), as_parameters(parameters)
    for run in runs.find({key: str(tags[key]) for key in (SEARCH_ID, TRIAL)}):
        known = run.data.params
        if all(known.get(key) == value for key, value in wanted.items()):
            return runs.reopen(run)
    run_id = runs.create(name, tags)
    runs.parameters(run_id, wanted)
    return run_id


def as_parameters(values: Mapping[str, Any]) -> dict[str, str]:
    """Return values as MLflow accepts parameters, without secrets."""
    shown: dict[str, Any] = without_secrets(plain(values))
    return {as_key(name): _text(value)[:_LONGEST_VALUE] for name, value in shown.items()}


def as_key(name: str) -> str:
    """Return a name as MLflow accepts it."""
    return _FORBIDDEN.sub("-", name)[:_LONGEST_KEY]


def _text(value: Any) -> str:
    return str(value) if isinstance(value, float) else value_text(value)
