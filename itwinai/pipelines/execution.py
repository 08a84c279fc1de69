"""A step from its decision to its record: what it is given, its call, and what is kept of it."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from itwinai.errors import PipelineError
from itwinai.io.atomic import write_whole
from itwinai.pipelines.outputs import content_of, encode
from itwinai.pipelines.planner import PlannedStep, Planner
from itwinai.pipelines.record import RECORD, REQUEST, StepRecord
from itwinai.pipelines.step_target import ArgumentMistake, StepTarget, is_of_type, type_text

_TEXTS = (".yaml", ".json", ".jsonl", ".csv", ".html", ".txt", ".md")
_LARGE = 32 << 20  # bytes
OUTCOME = ".outcome.json"


@dataclass(frozen=True)
class Request:
    """What a step is run with.

    Attributes:
        step: its name.
        class_path: of its function or class.
        arguments: by name, with the outputs of other steps.
        part: the folder in which it works.
        absent: paths among its arguments at which there is nothing yet.
        started: seconds since 1970.
    """

    step: str
    class_path: str
    arguments: Mapping[str, Any]
    part: str
    absent: tuple[str, ...]
    started: float

    def write(self) -> Path:
        """Write it to its folder, and return the path; it may hold secrets."""
        path = Path(self.part) / REQUEST
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> Request:
        """Return the request of a file."""
        plain = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**plain, "absent": tuple(plain["absent"])})


def begin(planner: Planner, planned: PlannedStep) -> Request:
    """Make the folder of a step, and return what it is run with."""
    name = planned.name
    part = planner.folder.prepare(name, planned.fingerprint, keep=planner.targets[name].resumes)
    return Request(
        step=name,
        class_path=planner.file.steps[name].class_path.value,
        arguments=planner.values(name),
        part=str(part.absolute()),
        absent=tuple(planner.absent_paths(name)),
        started=time.time(),
    )


def perform(request: Request) -> Any:
    """Run a step in this process, and return its outputs as plain values.

    Raises:
        PipelineError: an argument, which another step has made, is not of its type; or it has returned something that
            is not of the type that it says, or cannot be kept.
    """
    part = Path(request.part)
    target = StepTarget.load(request.class_path)
    try:
        returned = target.call(request.arguments, part)
    except ArgumentMistake as mistake:
        raise PipelineError(f"steps.{request.step}.{mistake.argument}: {mistake}") from None
    if not is_of_type(returned, target.returns):
        raise PipelineError(
            f"The step '{request.step}' has returned {returned!r:.100}, and {request.class_path} says that it returns "
            f"{type_text(target.returns)}. Change one of them."
        )
    return encode(returned, part, request.step)


def fail(request: Request) -> None:
    """Forget what a failed step was run with: what it lacked may be there the next time."""
    (Path(request.part) / REQUEST).unlink(missing_ok=True)


def finish(planner: Planner, planned: PlannedStep, request: Request, outputs: Any) -> StepRecord:
    """Let the outputs of a step appear under its name, with its record.

    Args:
        planner: that has decided.
        planned: the decision.
        request: what it was run with.
        outputs: as `perform` has returned them.
    """
    part = Path(request.part)
    for name in (REQUEST, OUTCOME):
        (part / name).unlink(missing_ok=True)
    if planner.file.steps[planned.name].command:
        _move_paths(part, planner.folder.of(planned.name))
    hasher = planner.hasher
    record = StepRecord(
        step=planned.name,
        fingerprint=planned.fingerprint,
        outputs=outputs,
        content=content_of(outputs, part, hasher, RECORD),
        files=hasher.digest(part, RECORD),
        ended=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        seconds=round(time.time() - request.started, 2),
        was_absent={path: hasher.digest(Path(path)) for path in request.absent if Path(path).exists()},
    )
    record.write(part)
    planner.folder.publish(planned.name, part)
    return record


def _move_paths(part: Path, final: Path) -> None:
    """Name the final folder in the texts that a command has written, such as the best config of a search."""
    for path in part.rglob("*"):
        if path.suffix in _TEXTS and path.is_file() and path.stat().st_size < _LARGE:
            content = path.read_bytes()
            if str(part).encode() in content:
                path.write_bytes(content.replace(str(part).encode(), str(final).encode()))


@contextmanager
def locked(path: Path, what: str, waits: bool = False) -> Iterator[None]:
    """Hold a lock that ends with this process.

    Args:
        path: of the file; its folder is created.
        what: is locked, for the error.
        waits: wait until another process has ended.

    Raises:
        PipelineError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            raise PipelineError(
                f"{what} is run by another process ({file.read().strip() or 'unknown'}). Wait until it has ended, or "
                "use another --folder."
            ) from None
        except OSError:  # a file system without locks
            yield
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield


def write_outcome(request: Request, outputs: Any) -> None:
    """Leave the outputs for the process that has started this one."""
    write_whole(Path(request.part) / OUTCOME, json.dumps(outputs))


def read_outcome(request: Request) -> Any:
    """Return the outputs that a process has left.

    Raises:
        PipelineError: it has left none.
    """
    path = Path(request.part) / OUTCOME
    if not path.exists():
        raise PipelineError(f"The step '{request.step}' has ended without a result: it called sys.exit, or was killed.")
    return json.loads(path.read_text(encoding="utf-8"))
