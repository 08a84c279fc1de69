"""Workers that run the caller's script again, as far as the launch, and then take part in it.

Nothing has to be pickled for them: the script makes its objects in each worker. What the launches before this one have
changed is applied where the script comes to them, so that no run is repeated.
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import cloudpickle
from torch import Tensor

from itwinai.compat import cloudpickle as compat_cloudpickle
from itwinai.compat import python as compat_python
from itwinai.io.atomic import write_whole
from itwinai.launchers import worker
from itwinai.launchers.environment import RankInfo
from itwinai.launchers.payload import Payload, Result
from itwinai.launchers.payload import run as run_payload
from itwinai.launchers.state_sync import named_tensors

_VARIABLE = "ITWINAI_SCRIPT_LAUNCH"

# Programs that run someone's code, but not as a script that could be run again by itself.
_RUNNERS = ("pytest", "py.test", "_pytest", "ipykernel", "ipykernel_launcher", "IPython", "ipython", "jupyter", "ray")


def script_command() -> list[str] | None:
    """Return the command that runs this process's script again; None if there is no script."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None or not os.path.isfile(file) or hasattr(sys, "ps1"):
        return None
    module = main.__spec__.name if main.__spec__ is not None else ""
    if module.partition(".")[0] in _RUNNERS or Path(file).name.startswith(_RUNNERS):
        return None
    arguments = sys.orig_argv[1:]
    if not module:  # by its whole path: the script may have changed the folder
        given = next((index for index, word in enumerate(arguments) if Path(word).name == Path(file).name), None)
        if given is not None:
            arguments[given] = os.path.abspath(file)
    return [sys.executable, *arguments]


@dataclass(frozen=True)
class Rerun:
    """What a process that runs a script again is for.

    Attributes:
        number: of the launch of this process in which it takes part.
        rank: as which worker.
        folder: of that launch.
        history: the folder with what earlier launches have changed.
        caller: the process id of the caller. What the script starts itself inherits the variables, and is not a worker.
    """

    number: int
    rank: int
    folder: str
    history: str
    caller: int

    def variables(self) -> dict[str, str]:
        """Return the environment variables by which the process knows."""
        return {_VARIABLE: cloudpickle.dumps(asdict(self)).hex()}

    @classmethod
    def of_this_process(cls) -> Rerun | None:
        """Return the rerun that this process belongs to; None if it does not rerun a script."""
        text = os.environ.get(_VARIABLE)
        if text is None:
            return None
        rerun = cls(**pickle.loads(bytes.fromhex(text)))
        return rerun if rerun.caller == os.getppid() else None


@dataclass(frozen=True)
class LaunchInstructions:
    """What a process that has run the script as far as its launch is told there.

    Attributes:
        rank_infos: of the workers of the launch, by rank.
        rng_states: where the caller stands in its random numbers.
        tensors: the caller's parameters and buffers: a script without a seed makes others in each process.
    """

    rank_infos: Mapping[int, RankInfo]
    rng_states: dict[str, Any]
    tensors: dict[str, Tensor]


class LaunchHistory:
    """The launches of this process until now: how many there were, and what they have changed.

    A script has one sequence of launches, over all its trainers; that is why there is one history for each process.

    Attributes:
        begun: number of launches.
        all_by_script: whether all that have ended are kept, so that the script can be run again as far as a later one.
    """

    def __init__(self) -> None:
        self.begun = 0
        self.all_by_script = True
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def folder(self) -> Path:
        """The folder with what the launches have changed; it is removed when this process ends."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="itwinai-history-")
        return Path(self._folder.name)

    def begin(self) -> int:
        """Count a launch; return its number."""
        self.begun += 1
        return self.begun - 1

    def keep(self, number: int, outcome: Sequence[Result] | BaseException) -> None:
        """Keep how a launch has ended, for processes that run the script again as far as a later one."""
        write_whole(_file(self.folder, number), cloudpickle.dumps(outcome))


HISTORY = LaunchHistory()


def know_classes() -> None:
    """Let the script's classes be the same for all processes that run the script, in what they send each other."""
    compat_cloudpickle.register_script_classes(
        cls for cls in compat_python.objects_of(type) if issubclass(type(cls), type)
    )


def earlier_outcome(rerun: Rerun, number: int) -> Sequence[Result] | BaseException:
    """Return how an earlier launch has ended: its results, or the error with which it failed."""
    know_classes()
    outcome: Sequence[Result] | BaseException = pickle.loads(_file(Path(rerun.history), number).read_bytes())
    return outcome


def join_launch(rerun: Rerun, payload: Payload) -> NoReturn:
    """Be the worker that this process runs the script for, and end with the run.

    Args:
        rerun: what this process is for.
        payload: of the launch that the script has come to, with this process's own objects.
    """
    folder = Path(rerun.folder)
    worker.die_with_caller(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    instructions: LaunchInstructions = pickle.loads((folder / "instructions.pickle").read_bytes())
    own = named_tensors(payload.trainer.lightning_module)
    for name, tensor in instructions.tensors.items():
        if name in own and own[name].shape == tensor.shape:
            own[name].detach().copy_(tensor)
    know_classes()
    payload.rng_states = instructions.rng_states
    rank_info = instructions.rank_infos[rerun.rank]
    variables = {name: value for name, value in os.environ.items() if name != _VARIABLE}

    def run(report: Callable[[BaseException], None]) -> Result:
        return run_payload(payload, rank_info, report, traced=rank_info.local_rank == 0)

    code = 1
    try:
        worker.work(folder, rerun.rank, rank_info, variables, run)
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1
    finally:
        worker.exit_at_once(code)


def _file(folder: Path, number: int) -> Path:
    return folder / f"launch-{number}.pickle"
