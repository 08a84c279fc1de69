"""The run of a whole search in MLflow, with those of its trials nested below it."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from itwinai.io.atomic import write_whole
from itwinai.loggers.mlflow_quiet import clean_output
from itwinai.run_info.redaction import without_secrets
from itwinai.trials.records import SearchRecord, Status
from itwinai.tune.logger_config import Entry, entries_of
from itwinai.tune.mlflow_runs import PARENT, SEARCH_ID, TRIAL, MlflowLocation, Runs, as_key, as_parameters, location_of

if TYPE_CHECKING:
    from itwinai.loggers.mlflow_client import Record

IDENTITY = "search-id.json"
"""The file in the folder of a search with what tells it from others of the same name."""

_ROLE = {"itwinai.role": "search"}
_DONE: dict[Status, str] = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}
_BEST = "itwinai.best."


def search_id(folder: Path) -> str:
    """Return what tells a search from others of the same name; a search that is resumed keeps it.

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
            LoggerError: no server answers, or it does not take what is logged. Then all is as it was, or some of it is
                there; the same call later completes it.
        """
        from itwinai.loggers.mlflow_client import Point

        runs = Runs(self.place)
        reached = {**_counts(record), **_best_values(record)}
        self._send(self.run_id, [Point(name, value, _now(), len(record.trials)) for name, value in reached.items()])
        self._tag_best(runs, _best_parameters(record))
        with runs.asking():
            for file in files:
                runs.client.log_artifact(self.run_id, str(file))
        self._end_trials(runs, record)
        self._end(self.run_id, status)

    def place_to_look(self) -> str:
        """Return where a person finds the run, or how to look at it."""
        shown = str(without_secrets(self.place.address))
        if shown.startswith("http"):
            return f"{shown}/#/experiments/{self.experiment_id}/runs/{self.run_id}"
        return f"mlflow ui --backend-store-uri {shown}"

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
        from itwinai.loggers.mlflow_client import End

        self._send(run_id, [End(status, ended or _now())])

    def _send(self, run_id: str, records: Sequence[Record]) -> None:
        from itwinai.loggers.mlflow_client import send

        with clean_output(self.place.address):
            send(self.place.address, run_id, records)


def open_parent_run(
    given: Any, search: str, folder: Path, settings: Mapping[str, Any] | None = None
) -> ParentRun | None:
    """Return the run of a search in MLflow; None if no logger of its config is MLflow's.

    The experiment, and a database if there is no server, are made here: trials that begin at the same time would make
    them several times. A search that is resumed goes on in the run that it has.

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
    """Return the best trial's name and parameters as tags, which a search that is resumed can set anew."""
    front = record.pareto_front()
    names = ", ".join(trial.name for trial in front)
    if len(front) != 1:
        return {f"{_BEST}trials": names} if names else {}
    found = as_parameters(front[0].parameters)
    return {f"{_BEST}trial": names, **{f"{_BEST}{name}": value for name, value in found.items()}}


def _now() -> int:
    return int(time.time() * 1000)
