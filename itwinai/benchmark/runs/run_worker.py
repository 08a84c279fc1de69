"""One run of a cell, in a process of its own: ``python -m itwinai.benchmark.runs.run_worker REQUEST``."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itwinai.io.atomic import write_whole
from itwinai.launchers.worker import exit_soon
from itwinai.strategies.registry import uses_ray

if TYPE_CHECKING:
    from itwinai.launchers.ray_init import StartingRay

RESULT = "result.json"
ERROR = "error.txt"


@dataclass(frozen=True)
class RunRequest:
    """What a run is to do.

    Attributes:
        config: of the run.
        folder: for its result.
        steps: least number of steps that are measured.
        warmup: number of steps before them.
        seconds: least time that is measured.
    """

    config: dict[str, Any]
    folder: str
    steps: int
    warmup: int
    seconds: float


def write_request(request: RunRequest, path: Path) -> None:
    """Write what a run is to do, for `main` to read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)  # a config may hold secrets
    path.write_text(json.dumps(asdict(request)), encoding="utf-8")


def main(argv: list[str]) -> int:
    """Make the run of a request, and leave the result, or the error, in its folder.

    Args:
        argv: path of the request, and when the command was started, in seconds since 1970.
    """
    # Whoever ends a run that hangs asks first where it is.
    faulthandler.register(signal.SIGQUIT, all_threads=True)
    if os.getcwd() not in sys.path:  # the config names classes in files of the current folder, as for a script
        sys.path.insert(0, os.getcwd())
    request = RunRequest(**json.loads(Path(argv[0]).read_text(encoding="utf-8")))
    try:
        with _starting_workers(request.config["trainer"]) as starting:
            _run(request, float(argv[1]), starting)
    except BaseException as error:
        _keep_error(error, Path(request.folder))
        raise
    return 0


def _starting_workers(trainer: dict[str, Any]) -> AbstractContextManager[StartingRay | None]:
    """Return the context in which Ray starts while this process imports, as for `itwinai fit`."""
    workers = trainer["devices"] * trainer["num_nodes"]
    if uses_ray(str(trainer["strategy"])):
        from itwinai.launchers.ray_init import RayWorkersRequest, ray_starting

        return ray_starting(RayWorkersRequest.of(workers, trainer["strategy"], trainer.get("accelerator")))
    return nullcontext()


def _run(request: RunRequest, began: float, starting_ray: StartingRay | None) -> None:
    from itwinai.benchmark.record_file import measured_to_plain
    from itwinai.benchmark.runs.timing_callback import TimingCallback
    from itwinai.config.lightning_cli import command_line

    timing = TimingCallback(request.steps, request.warmup, request.seconds, began)
    built = command_line(
        request.config, starting_ray, run=False, save_config_callback=None, trainer_defaults={"callbacks": timing}
    )
    built.trainer.fit(built.model, datamodule=built.datamodule)
    if timing.measured is not None:  # on rank 0
        write_whole(Path(request.folder) / RESULT, json.dumps(measured_to_plain(timing.measured)))


def _keep_error(error: BaseException, folder: Path) -> None:
    """Leave an error for people; the first one of several workers is the cause."""
    if isinstance(error, SystemExit) and not isinstance(error.code, str):
        return
    text = str(error) if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
    try:
        with (folder / ERROR).open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return


if __name__ == "__main__":
    exit_soon()
    sys.exit(main(sys.argv[1:]))
