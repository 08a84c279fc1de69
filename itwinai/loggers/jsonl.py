"""Log into a file with one JSON object per line, which every tool can read during the run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from itwinai.io.atomic import write_whole
from itwinai.io.line_file import LineFile
from itwinai.io.versioned_json import NOT_FINITE, finite
from itwinai.loggers.folder_logger import FolderLogger
from itwinai.run_info.serialization import plain, plain_hyperparameters

METRICS, HYPERPARAMETERS = "metrics.jsonl", "hparams.json"
_OURS = ("step", "time")


class JSONLLogger(FolderLogger):
    """Log metrics to ``metrics.jsonl``: one JSON object per line, ``{"step": 9, "time": 1764000000.123, "loss": 0.5}``.

    Lines are only ever appended, and each is whole. ``time`` is in seconds since 1970. Numbers that are not finite,
    which JSON does not have, are the texts "NaN", "Infinity" and "-Infinity"; `read_records` turns them into numbers
    again. A metric that is called ``step`` or ``time`` becomes ``metric/step`` or ``metric/time``. Hyperparameters
    are beside, in ``hparams.json``, without secrets.

    A run that is continued in a version that exists appends to its file. Steps that it repeats are there twice: the
    later line counts.

    Args:
        save_dir: the folder that holds all runs.
        name: of the folder below it; None or an empty one for none.
        version: number or name of the run. By default the number after the highest one that is there.
        flush_every: seconds after which lines are written, at the latest with the next one; what a process that is
            killed may lose. Rarely logged values are written at once.
        flush_records: number of lines that are written without waiting so long.

    Raises:
        ConfigurationError: ``save_dir`` is an address and not a folder.
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        *,
        flush_every: float = 1.0,
        flush_records: int = 1000,
    ) -> None:
        super().__init__(save_dir, name, version)
        self.flush_every = flush_every
        self.flush_records = flush_records
        self._file: LineFile | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> LineFile:
        """The file of the metrics, on rank 0."""
        if self._file is None:
            self._file = LineFile(Path(self.log_dir, METRICS), self.flush_every, self.flush_records)
        return self._file

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append a line.

        Args:
            metrics: numbers, or tensors with one element.
            step: the step they belong to; null in the file if it is not given.
        """
        record: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
        for name, value in metrics.items():
            number = value if isinstance(value, float) else plain(value)
            record[f"metric/{name}" if name in _OURS else name] = finite(number)
        self.experiment.append(record)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Write hyperparameters, together with those that were logged before.

        Args:
            params: a mapping or a namespace.
            *args: not used, as with Lightning's loggers.
            **kwargs: not used.
        """
        path = Path(self.log_dir, HYPERPARAMETERS)
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        known |= finite(plain_hyperparameters(params))
        write_whole(path, json.dumps(known, indent=1, ensure_ascii=False) + "\n")

    @rank_zero_only
    def save(self) -> None:
        """Write the lines that wait."""
        if self._file is not None:
            self._file.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the lines that wait, at the end of a run."""
        self.save()
        self._file = None  # this object may go back to another machine, with another clock

    def __getstate__(self) -> dict[str, Any]:
        self.save()  # what waits is this process's to write, and comes before what the copy writes
        return {**vars(self), "_file": None}


def read_records(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Read what `JSONLLogger` has written, also while it is being written.

    Args:
        path: of ``metrics.jsonl``, or of the folder that it is in.
    """
    place = Path(path)
    with (place / METRICS if place.is_dir() else place).open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):  # the last line may be half of one
                yield {name: _number(value) for name, value in json.loads(line).items()}


def _number(value: Any) -> Any:
    return NOT_FINITE.get(value, value) if isinstance(value, str) else value
