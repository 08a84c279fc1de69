"""Record a search from Ray Tune's callbacks.

This module imports Ray: it is for the process that searches. `search_journal` reads what it writes without Ray.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune import Callback
from ray.tune.result import AUTO_RESULT_KEYS, DEBUG_METRICS, TRAINING_ITERATION

from itwinai.run_info.serialization import plain
from itwinai.trials.records import Objective, Range, Report, SearchRecord, Status, TrialRecord
from itwinai.tune.search_journal import SearchJournal, record_of

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

OWN = "itwinai"
"""Under this key results hold what itwinai's trials report beside their metrics."""

# Ray's word for where a trial stands; how one has ended that is TERMINATED, it does not say.
_STATUS: Mapping[str, Status] = {"PENDING": "waiting", "RUNNING": "running", "PAUSED": "paused", "ERROR": "failed"}
_NO_METRICS = {*AUTO_RESULT_KEYS, *DEBUG_METRICS}
_UPDATE_EVERY = 0.2
# How much of the time that a search has taken a driver that is killed may forget, in seconds.
_WRITE_TIME_EVERY = 60.0


class SearchRecorder(Callback):
    """Keep the record of a search up to date, and in a file from which a later process continues.

    Results are those of itwinai's trials: under the key ``itwinai`` a dictionary with ``checkpoint``, the path of the
    checkpoint that was saved with this report, if one was, and ``finished``, true in the last result of a trial that
    ends by itself. One that ends without another result, as functions do, has also ended by itself: Ray marks the last
    result in either case, but where the scheduler has ended the trial, before it is told here.

    Parameters are those with which a trial has come to its last report: PBT changes them on the way. The file keeps all
    that it has had.

    The seconds of a trial are those since its actor was there, over all its starts: what is repeated after a failure
    counts, to wait does not. Ray's ``time_total_s`` falls back to that of the checkpoint from which a trial continues,
    with PBT even that of another trial.

    Args:
        name: of the search.
        objectives: what is searched for.
        space_paths: the paths that are searched over, in the order of the space.
        folder: of the search; the file is in it.
        active: turns the searcher's config of a trial into the parameters that have an effect, by path.
        settings: searcher, scheduler, resources... as label and value, for people.
        ranges: what the parameters are drawn from, by path.
        number_of: returns the number of a trial, 0 for the first; by default they are counted as they start.
        on_update: called with the record during the search, a few times per second, and at its end. Pickled
            copies, which `ray.tune.Tuner` makes, have none.
    """

    def __init__(
        self,
        name: str,
        objectives: Sequence[Objective],
        space_paths: Sequence[str],
        folder: str,
        active: Callable[[Mapping[str, Any]], dict[str, Any]],
        *,
        settings: Mapping[str, str] | None = None,
        ranges: Mapping[str, Range] | None = None,
        number_of: Callable[[Trial], int] | None = None,
        on_update: Callable[[SearchRecord], object] | None = None,
    ) -> None:
        self.folder = folder
        self.active = active
        self.number_of = number_of
        self.on_update = on_update
        self._search = SearchRecord(
            name, objectives, space_paths, (), folder=folder, settings=settings or {}, ranges=ranges or {}
        )
        self._file: SearchJournal | None = None
        self._clock = _Clock()
        self._since: dict[str, float] = {}
        self._ends: dict[str, _End] = {}
        self._updated = 0.0

    def record(self) -> SearchRecord:
        """Return the search as it stands."""
        if self._file is None:
            return self._search
        record = record_of(self._file.history, self.folder)
        now = time.monotonic()
        running = {self._known(trial).number: now - since for trial, since in self._since.items()}
        trials = tuple(
            replace(trial, seconds=trial.seconds + running[trial.number]) if trial.number in running else trial
            for trial in record.trials
        )
        return replace(record, trials=trials, seconds=self._clock.seconds())

    def setup(self, *args: Any, **info: Any) -> None:
        """Read what an earlier process has written, and resume from it."""
        self._file = SearchJournal(self.folder)
        self._clock = _Clock(self._file.history.seconds)
        self._file.write_search(self._search, self._clock.seconds())

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Note that a trial runs."""
        self._ends[trial.trial_id] = _End()
        self._note(trial, "running")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Note a report."""
        own = result.get(OWN) or {}
        self._ends[trial.trial_id] = _End(bool(own.get("finished")), bool(result.get("done")))
        metrics = {
            name: float(value)
            for name, value in result.items()
            if name not in _NO_METRICS and isinstance(value, Real) and not isinstance(value, bool)
        }
        parameters = plain(self.active(result.get("config", trial.config)))
        known = self._known(trial.trial_id)
        is_known = any(other.number == result[TRAINING_ITERATION] for other in known.reports)
        if own.get("again") and (is_known or parameters != known.parameters):
            return  # by PBT a trial that was over may get parameters, new ones or not: it tells what it has copied
        if metrics:
            seconds = round(known.seconds + self._ran(trial.trial_id), 3)
            report = Report(result[TRAINING_ITERATION], seconds, metrics)
            checkpoint = None
            if self._is_best(known, report):  # with its parameters: PBT changes them on the way
                checkpoint = own.get("checkpoint") or None
                if parameters != known.parameters:
                    self._note(trial, known.status, parameters=parameters)
            self._there.write_report(trial.trial_id, report, checkpoint, self._clock.seconds())
            self._since[trial.trial_id] = time.monotonic()  # what was before is in the report

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Note that a trial has ended, by itself or by the scheduler."""
        if self._is_known(trial):
            end = self._ends.get(trial.trial_id, _End())
            # That a function has returned is not a result of its own: Ray marks its last one afterwards.
            returned = trial.status == "RUNNING" and not end.was_marked and trial.last_result.get("done")
            self._note(trial, "finished" if end.by_itself or returned else "stopped")

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Note that a trial has failed, and is tried again."""
        self._note(trial, "waiting", error=_error_of(trial))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Note that a trial has failed for good."""
        self._note(trial, "failed", error=_error_of(trial))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Note what has changed without a call: trials that wait, pause, or are ended with the search."""
        self._follow(trials)
        if self._clock.seconds() - self._there.history.seconds > _WRITE_TIME_EVERY:
            self._there.write_time(self._clock.seconds())
        if self.on_update is not None and time.monotonic() - self._updated > _UPDATE_EVERY:
            self.on_update(self.record())
            self._updated = time.monotonic()

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Stop the clocks; trials that still run wait from now on until the search is resumed."""
        self._clock.stop()
        # When a search is interrupted, Ray ends its trials as if they were not to be resumed.
        for trial_id in list(self._since):
            self._write(trial_id, replace(self._known(trial_id), status="waiting"))
        self._there.write_time(self._clock.seconds())
        if self.on_update is not None:
            self.on_update(self.record())

    def __getstate__(self) -> dict[str, Any]:
        fresh: dict[str, Any] = {
            "on_update": None,
            "_file": None,
            "_clock": _Clock(),
            "_since": {},
            "_ends": {},
            "_updated": 0.0,
        }
        return {**vars(self), **fresh}

    @property
    def _there(self) -> SearchJournal:
        assert self._file is not None, "Ray Tune calls setup first"
        return self._file

    def _known(self, trial: str) -> TrialRecord:
        return self._there.history.trials[trial]

    def _is_known(self, trial: Trial) -> bool:
        return trial.trial_id in self._there.history.trials

    def _is_best(self, known: TrialRecord, report: Report) -> bool:
        """Return whether a report counts for its trial: it is the best, or with several objectives the last."""
        if len(self._search.objectives) > 1:
            return True
        objective = self._search.objectives[0]
        before = [other for other in known.reports if other.number < report.number]  # the others it repeats
        best = replace(known, reports=before).best_report(objective)
        value = report.metrics.get(objective.metric, math.nan)
        return best is None or objective.better(value, best.metrics[objective.metric])

    def _ran(self, trial: str) -> float:
        """Return for how long a trial has run since that was last added to its seconds."""
        return time.monotonic() - self._since[trial] if trial in self._since else 0.0

    def _note(self, trial: Trial, status: Status, **changed: Any) -> TrialRecord:
        """Write what is known of a trial, which may be new."""
        if not self._is_known(trial):
            number = len(self._there.history.trials) if self.number_of is None else self.number_of(trial)
            known = TrialRecord(number, trial.custom_trial_name or str(trial), self.active(trial.config))
        else:
            known = self._known(trial.trial_id)
        changed |= {"folder": str(trial.path or ""), "failures": trial.num_failures}
        self._write(trial.trial_id, replace(known, status=status, **changed))
        return self._known(trial.trial_id)

    def _write(self, trial: str, record: TrialRecord) -> None:
        record = replace(record, seconds=round(record.seconds + self._ran(trial), 3))
        self._since.pop(trial, None)
        if record.status == "running":
            self._since[trial] = time.monotonic()
        self._there.write_trial(trial, record, self._clock.seconds())

    def _follow(self, trials: Sequence[Trial]) -> None:
        """Bring the trials to where Ray says that they stand."""
        for trial in trials:
            if self._is_known(trial):
                before = self._known(trial.trial_id).status
                status = self._ended(trial, before) if trial.status == "TERMINATED" else _STATUS[trial.status]
                if status == "failed" != before:
                    self._note(trial, status, error=_error_of(trial))
                elif status != before:
                    self._note(trial, status)
        there = {trial.trial_id for trial in trials}
        for trial_id, known in list(self._there.history.trials.items()):
            # Ray saves the state of a search from time to time: later trials are lost with the process.
            if trial_id not in there and known.status in ("waiting", "running", "paused"):
                self._write(trial_id, replace(known, status="stopped"))

    def _ended(self, trial: Trial, before: Status) -> Status:
        if before in ("finished", "stopped"):
            return before
        known = self._known(trial.trial_id)
        if known.error and not known.reports:  # what ended the search, maybe: no trial logs what is searched for
            return "failed"
        return "finished" if self._ends.get(trial.trial_id, _End()).by_itself else "stopped"


@dataclass(frozen=True)
class _End:
    """What the last result of a trial says of its end.

    Attributes:
        by_itself: the trial says that it has ended.
        was_marked: Ray marked the result as the last one when it came, for any reason.
    """

    by_itself: bool = False
    was_marked: bool = False


class _Clock:
    """Counts the seconds of a search, over all its starts.

    Args:
        before: seconds that it has taken in earlier processes.
    """

    def __init__(self, before: float = 0.0) -> None:
        self._before = before
        self._began = time.monotonic()
        self._ended: float | None = None

    def seconds(self) -> float:
        """Return how many there are."""
        return round(self._before + (self._ended or time.monotonic()) - self._began, 3)

    def stop(self) -> None:
        """Count no further."""
        self._ended = time.monotonic()


def _error_of(trial: Trial) -> str:
    """Return the last error of a trial in one line: Ray writes all of them into a file."""
    if trial.error_file is None or not Path(trial.error_file).exists():
        return ""
    text = Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
    last = re.split(r"^Failure # \d+ \(occurred at .*\)$", text, flags=re.MULTILINE)[-1]
    return _error_line(last)


def _error_line(text: str) -> str:
    """Return the line of a traceback that names the error; the first line of what is not a traceback."""
    lines = [line for line in text.splitlines() if line.strip()]
    frames = [place for place, line in enumerate(lines) if line.startswith('  File "')]
    after = lines[frames[-1] + 1 :] if frames else lines
    line = next((line for line in after if not line.startswith(" ")), "").strip()
    return line.removeprefix("itwinai.errors.TrialError: ").removeprefix("itwinai.errors.")  # the user knows where
