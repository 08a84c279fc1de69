"""Show a job while it waits and runs: its state, its place in the queue, its log."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TextIO

from itwinai.slurm.commands import OVER, TaskRecord
from itwinai.slurm.job import EVERY, Job


def follow(job: Job, stream: TextIO | None = None, every: float = EVERY) -> int:
    """Print what a job does until it has ended.

    Args:
        job: the job.
        stream: where to print.
        every: seconds between two looks.

    Returns:
        Its exit code; 1 if it has none and did not succeed.
    """
    stream = stream or sys.stdout
    told, shown = "", dict.fromkeys(job.log_files(), 0)
    while True:
        record = job.record()
        is_over = record.state in OVER or job.is_over()
        line = state_text(job, record)
        if line != told:
            print(f"itwinai: {line}", file=stream, flush=True)
            told = line
        for path in shown:
            shown[path] += _print_from(path, shown[path], stream, f"[{path.stem}] " if len(shown) > 1 else "")
        if is_over:
            return (0 if record.state == "COMPLETED" else 1) if record.exit_code is None else record.exit_code
        time.sleep(every)


def state_text(job: Job, record: TaskRecord) -> str:
    """Return a line about the state of a job."""
    text = f"job {job.number} {record.state.lower() or 'is over'}"
    if record.state == "PENDING":
        place = job.place_in_queue()
        text += f", {place}. in the queue of its partition" if place else ""
        text += f": {record.reason}" if record.reason not in ("", "None") else ""
    if record.restarts:
        text += f", queued again {record.restarts} times" if record.restarts > 1 else ", queued again once"
    if record.exit_code is not None:
        text += f", exit code {record.exit_code}"
    return text


def _print_from(path: Path, offset: int, stream: TextIO, prefix: str) -> int:
    """Print what a file has from an offset on, as far as lines are complete; return how many bytes that was."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    if prefix:
        data = data[: data.rfind(b"\n") + 1]
        text = "".join(prefix + line for line in data.decode("utf-8", "replace").splitlines(keepends=True))
    else:
        text = data.decode("utf-8", "replace")
    stream.write(text)
    stream.flush()
    return len(data)
