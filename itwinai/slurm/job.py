"""A job that was submitted: its state, its log, its result."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from itwinai.errors import ConfigurationError, SlurmError
from itwinai.io.atomic import write_whole
from itwinai.io.versioned_json import document_text, reading
from itwinai.slurm.commands import FORGOTTEN, OVER, UNKNOWN, TaskRecord, ask, joined_state, task_records
from itwinai.slurm.log import reason_of_failure
from itwinai.slurm.result import JobResult, exit_code_file, read_result

FILE = "job.json"
EVERY = 2.0
"""Seconds between two looks at a job: polling more often burdens the scheduler."""


@dataclass(frozen=True)
class Job:
    """A job that was submitted.

    Attributes:
        number: by which SLURM knows it; of a task of an array with its index, as in ``7_2``.
        folder: where its script, log and results are.
        name: of the job.
        indices: of its tasks, if it is an array.
        task: its index, if it is a task of an array.
        followers: numbers of the jobs of a chain after it, which resume what it could not end.
        labels: of each task of an array, in the order of ``indices``, the values of its axes; of a task its own.
    """

    number: str
    folder: Path
    name: str = ""
    indices: Sequence[int] = ()
    task: int | None = None
    followers: Sequence[str] = ()
    labels: Sequence[str] = ()

    @classmethod
    def read(cls, folder: Path) -> Job:
        """Return the job that has left its file in a folder.

        Raises:
            ConfigurationError: there is none.
        """
        path = folder / FILE
        if not path.exists():
            raise ConfigurationError(f"There is no job in {folder}: it has no {FILE}.")
        with reading(f"{path} is not the file of a job"):
            plain = json.loads(path.read_text(encoding="utf-8"))
            indices, followers = tuple(plain["indices"]), tuple(plain["followers"])
            labels = tuple(plain.get("labels", ()))
            return cls(str(plain["number"]), folder, plain["name"], indices, followers=followers, labels=labels)

    def write(self) -> None:
        """Write the file by which `read` finds it again."""
        values = {
            "number": self.number,
            "name": self.name,
            "indices": list(self.indices),
            "followers": list(self.followers),
            "labels": list(self.labels),
        }
        write_whole(self.folder / FILE, document_text(values))

    @property
    def tasks(self) -> list[Job]:
        """The tasks of an array, each as a job."""
        return [
            replace(
                self, number=f"{self.number}_{index}", indices=(), task=index, labels=self.labels[place : place + 1]
            )
            for place, index in enumerate(self.indices)
        ]

    @property
    def state(self) -> str:
        """Its state as SLURM names it; ``UNKNOWN`` while SLURM does not answer.

        SLURM forgets a job some minutes after its end. Then it is what the job has left: ``COMPLETED`` with exit code
        0, ``FAILED`` with another, and ``UNKNOWN`` if it could leave nothing.
        """
        return self.record().state

    def record(self) -> TaskRecord:
        """Return state, exit code and the rest of what SLURM says of it; see `state`."""
        found = self._found()
        state = joined_state([one.state for one in found])
        code = self._exit_code(found)
        if state == FORGOTTEN:
            kept = UNKNOWN if code is None else "COMPLETED" if code == 0 else "FAILED"
            return TaskRecord(kept, code)
        first = next(one for one in found if one.state == state)
        return replace(first, exit_code=code if state in OVER else None)

    def _found(self) -> list[TaskRecord]:
        """Return what SLURM says; of a chain, without the jobs that were not needed any more."""
        if not self.followers:
            return task_records(self.number)
        links = [record for number in (self.number, *self.followers) for record in task_records(number)]
        if any(one.state not in OVER for one in links):
            return links
        ran = [one for one in links if one.state != "CANCELLED"]
        return ran[-1:] or links[-1:]

    def is_over(self) -> bool:
        """Return whether it has ended, or SLURM has forgotten it."""
        found = self._found()
        return joined_state([one.state for one in found]) in (*OVER, FORGOTTEN)

    def wait(self, every: float = EVERY) -> JobResult | list[JobResult]:
        """Wait until it has ended; return its result, see `result`.

        Args:
            every: seconds between two looks.
        """
        while not self.is_over():
            time.sleep(every)
        return self.results() if self.indices else self._result()

    def result(self, every: float = EVERY) -> JobResult:
        """Wait until it has ended; return its metrics, best checkpoint and exit code.

        A job that has failed has a result too: look at ``succeeded``, ``exit_code`` and `logs`.

        Args:
            every: seconds between two looks.

        Raises:
            ConfigurationError: it is an array, which has a result for each task.
        """
        if self.indices:
            raise ConfigurationError(f"The job {self.number} is an array of {len(self.indices)} tasks: use results().")
        while not self.is_over():
            time.sleep(every)
        return self._result()

    def results(self, every: float = EVERY) -> list[JobResult]:
        """Wait until it has ended; return the results of all tasks of an array, in their order.

        Args:
            every: seconds between two looks.
        """
        while not self.is_over():
            time.sleep(every)
        return [task._result() for task in self.tasks or [self]]

    def logs(self) -> str:
        """Return what it has printed; of an array, one task after the other."""
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in self.log_files() if path.exists()]
        return "".join(texts)

    def log_files(self) -> list[Path]:
        """Return the files into which it prints; they are there once it runs."""
        return [self.folder / f"output{suffix}.txt" for suffix in self._suffixes()]

    def cancel(self) -> None:
        """Remove it from the queue, or end it.

        Raises:
            SlurmError: SLURM refuses.
        """
        asked = subprocess.run(["scancel", self.number, *self.followers], capture_output=True, text=True)
        if asked.returncode and "Invalid job id" not in asked.stderr:
            raise SlurmError(f"The job {self.number} could not be cancelled: {asked.stderr.strip()}")

    def place_in_queue(self) -> int | None:
        """Return how many jobs of its partition are before it, plus one; None if it does not wait."""
        partition = ask("squeue", "-h", "-j", self.number, "-o", "%P").split()
        if not partition:
            return None
        listed = ask("squeue", "-h", "-t", "PENDING", "-p", partition[0], "-S", "-p,i", "-o", "%A").split()
        return listed.index(self.number) + 1 if self.number in listed else None

    def _suffixes(self) -> list[str]:
        if self.indices:
            return [f"-{index}" for index in self.indices]
        return ["" if self.task is None else f"-{self.task}"]

    def _exit_code(self, found: Sequence[TaskRecord]) -> int | None:
        """Return the exit code of the script; of an array the first that is not 0."""
        codes = [_left_code(self.folder / f"result{suffix}.json") for suffix in self._suffixes()]
        known = [code for code in codes if code is not None]
        if len(known) < len(codes):
            known += [one.exit_code for one in found if one.exit_code is not None]
        return next((code for code in known if code), known[0] if known else None)

    def _result(self) -> JobResult:
        record = self.record()
        found = read_result(self.folder / f"result{self._suffixes()[0]}.json", record.state, record.exit_code)
        return found if found.succeeded else replace(found, reason=reason_of_failure(self.log_files()[0]))


def _left_code(result: Path) -> int | None:
    path = exit_code_file(result)
    text = path.read_text().strip() if path.exists() else ""
    return int(text) if text.isdecimal() else None
