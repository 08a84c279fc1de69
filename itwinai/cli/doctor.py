"""`itwinai doctor`: what is installed and usable on this machine, and whether every strategy really trains here.

Whatever may hang or crash (imports of packages with native code, workers, daemons) happens in child processes with a
time limit. This process itself imports nothing but the standard library.
"""

from __future__ import annotations

import argparse
import copy
import difflib
import json
import logging
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from itwinai.strategies.registry import STRATEGY_NAMES

if TYPE_CHECKING:
    import torch
    from lightning.pytorch import LightningModule

HELP = "show what is installed and usable here; try every strategy"

_DESCRIPTION = """\
Show what is installed, what this machine offers, and whether every strategy works here.

Each strategy trains a tiny model with two workers of this machine: on GPUs if there are two, else on the CPU. It works
if its all-reduce adds up and if the trained weights are those of one process. The exit code is 1 if something that is
installed does not work.
"""

BASE = ("torch", "lightning", "torchmetrics")
INSTALL = {
    "deepspeed": "pip install 'itwinai[deepspeed]'",
    "horovod": "itwinai install horovod",
    "ray": "pip install 'itwinai[ray]'",
    "mlflow": "pip install 'itwinai[mlflow]'",
    "wandb": "pip install 'itwinai[wandb]'",
}
STRATEGIES = ("ddp", "deepspeed_stage_2", "horovod", "ray")

WORKERS = 2
STEPS = 3
GLOBAL_BATCH = 8
TOLERANCE = 1e-5  # largest difference from the weights of one process, relative to the largest weight of a tensor
LARGE = 8 * 2**20  # bytes of the tensor that the bandwidth is measured with

GRACE = 5.0  # seconds that a child has to end by itself, before it is killed with all that it started
CAUSE_LINES = 12
GIB = 2**30
SMALL_SHM = GIB  # containers often have 64 MiB, too little for Ray and for DataLoader workers

# By these a trainer takes itself for one worker of an outer launcher. The trials have to launch their own workers.
_OUTER_LAUNCHER = re.compile(
    r"(RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|NODE_RANK|GROUP_RANK|GROUP_WORLD_SIZE|MASTER_ADDR|MASTER_PORT)"
    r"|(ROLE_|TORCHELASTIC_|OMPI_|PMIX_|PMI_|MPI_LOCAL|JSM_|SLURM_STEP|SLURM_PROCID|SLURM_LOCALID).*"
    r"|HOROVOD_(RANK|SIZE|(LOCAL|CROSS)_(RANK|SIZE)|HOSTNAME|CONTROLLER|CPU_OPERATIONS|GLOO_RENDEZVOUS_\w+|ELASTIC)"
)
_MARK = "ITWINAI_DOCTOR_CHILD"
_SELF = (sys.executable, "-m", "itwinai.cli.doctor")


@dataclass(frozen=True)
class Measured:
    """What the workers of a strategy measured, and how well they trained.

    Attributes:
        workers: number of workers.
        device: the kind of device they used, ``cpu`` or ``cuda``.
        latency_us: microseconds for the all-reduce of one number, median.
        bandwidth_gb_s: bytes of a large tensor over the seconds of its all-reduce, in 1e9 bytes/s (the "algorithm
            bandwidth"), median.
        bus_bandwidth_gb_s: the same times 2 (n - 1) / n, which is what a ring of n workers moves over each link
            (the definition of NVIDIA's nccl-tests).
        start_s: seconds from ``trainer.fit()`` until all workers are ready for the first step.
        weight_difference: largest difference from the weights of one process, relative to the largest weight of the
            tensor.
    """

    workers: int
    device: str
    latency_us: float
    bandwidth_gb_s: float
    bus_bandwidth_gb_s: float
    start_s: float
    weight_difference: float


@dataclass(frozen=True)
class Trial:
    """One strategy, tried.

    Attributes:
        strategy: its name.
        measured: what it achieved, if it works.
        error: one line that says why it does not work.
        cause: the last lines of what explains the error.
        install: install line of the package that is missing.
    """

    strategy: str
    measured: Measured | None = None
    error: str = ""
    cause: tuple[str, ...] = ()
    install: str = ""

    @property
    def status(self) -> str:
        """Return ``works``, ``fails`` or ``not installed``."""
        return "not installed" if self.install else "fails" if self.error else "works"

    def record(self) -> dict[str, Any]:
        """Return the trial as plain data."""
        record: dict[str, Any] = {"strategy": self.strategy, "status": self.status}
        if self.measured is not None:
            record |= asdict(self.measured)
        if self.error:
            record |= {"error": self.error, "cause": list(self.cause)}
        if self.install:
            record["install"] = self.install
        return record


# --- the command --------------------------------------------------------------------------------------------


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def strategy_names(text: str) -> list[str]:
    """Split and check what was given to ``--strategies``.

    Args:
        text: names with commas between them.

    Raises:
        argparse.ArgumentTypeError: a name is unknown; the message holds the nearest.
    """
    names = [name for name in text.lower().replace(" ", "").split(",") if name]
    for name in names:
        if name not in STRATEGY_NAMES:
            nearest = difflib.get_close_matches(name, STRATEGY_NAMES, n=1, cutoff=0.5)
            hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
            raise argparse.ArgumentTypeError(
                f"there is no strategy '{name}' to try.{hint} Choose from {', '.join(STRATEGY_NAMES)}."
            )
    if not names:
        raise argparse.ArgumentTypeError("it names no strategy")
    return list(dict.fromkeys(names))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="itwinai doctor", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--strategies",
        type=strategy_names,
        metavar="A,B",
        default=list(STRATEGIES),
        help=f"the strategies to try (default: {','.join(STRATEGIES)})",
    )
    choice.add_argument("--all", action="store_true", help="try every name that the trainer's flag knows")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        default=120.0,
        help="time for each strategy, and for the imports before (default: %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="print a record for programs")
    # What this command starts itself with, for each part that may hang or crash.
    parser.add_argument("--probe", metavar="STRATEGY", help=argparse.SUPPRESS)
    parser.add_argument("--inspect", choices=["machine", *INSTALL], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser


def main(argv: list[str]) -> int:
    """Run ``itwinai doctor``.

    Args:
        argv: the arguments after ``doctor``.

    Returns:
        The exit code: 0, 1 if something that is installed does not work, 130 when interrupted.
    """
    args = _parser().parse_args(argv)
    if args.probe or args.inspect:
        return _be_child(args.probe, args.inspect, args.out)
    from itwinai.cli.horovod_build import stop_on_signals

    try:
        with (
            stop_on_signals(),
            Progress(sys.stderr) as progress,
            tempfile.TemporaryDirectory(prefix="itwinai-doctor-", ignore_cleanup_errors=True) as folder,
        ):
            strategies = STRATEGY_NAMES if args.all else args.strategies
            return _examine(strategies, args.timeout, args.json, Path(folder), progress)
    except KeyboardInterrupt:
        print("error: interrupted; no process was left behind", file=sys.stderr)
        return 130


def _examine(strategies: Sequence[str], timeout: float, as_json: bool, folder: Path, progress: Progress) -> int:
    """Look at everything, print it while it becomes known, and return the exit code."""
    from itwinai import __version__

    def say(text: str = "") -> None:
        if not as_json:
            progress.clear()
            print(text, flush=True)

    say(f"itwinai {__version__}\n")
    facts = inspect(timeout, folder, progress)
    installed, machine = describe_installed(facts), describe_machine(facts)
    say(format_installed(installed))
    say(format_machine(machine))
    device = "GPUs" if len(installed["torch"].get("gpus", [])) >= WORKERS else "the CPU"
    say(f"Strategies, each with {WORKERS} workers on {device}")
    width = name_width(strategies)
    say(format_header(width))
    trials = []
    for index, name in enumerate(strategies, 1):
        progress.start(f"trying {name} ({index} of {len(strategies)})")
        trials.append(try_strategy(name, timeout, folder, progress))
        say(format_trial(trials[-1], width))
    progress.clear()
    broken = [name for name, package in installed.items() if "error" in package]
    failed = [trial for trial in trials if trial.error]
    if as_json:
        record = {
            "itwinai": __version__,
            "installed": installed,
            "machine": machine,
            "strategies": [trial.record() for trial in trials],
            "ok": not broken and not failed,
        }
        print(json.dumps(record, indent=2))
    else:
        print(format_end(trials, broken))
    return 1 if broken or failed else 0


class Progress:
    """One line in a terminal that says what is being done, and for how long; nothing elsewhere.

    Args:
        stream: where the line goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._drawn = ""
        self.start("")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.clear()

    def start(self, task: str) -> None:
        """Say what is being done from now on."""
        self._task, self._started = task, time.monotonic()

    def tick(self) -> None:
        """Redraw the line if it has changed."""
        line = f"  {self._task} ... {time.monotonic() - self._started:.0f} s"
        if self._live and line != self._drawn:
            # Longer than the terminal is wide, it would break into two, of which only one could be cleared.
            self._write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")
            self._drawn = line

    def clear(self) -> None:
        """Take the line away."""
        if self._drawn:
            self._write("\r\x1b[K")
            self._drawn = ""

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


# --- child processes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a child process left.

    Attributes:
        record: what it wrote into its file; empty if it did not get there.
        problem: one line that says how it ended, if it did not end well.
        log: all that it and its own children printed.
    """

    record: dict[str, Any]
    problem: str
    log: str


class Child:
    """A process with a time limit, of which nothing is left when its context ends.

    Its output goes to a file, because a daemon that a failed trial leaves behind would keep a pipe open.

    Args:
        command: the command; ``--out FILE`` is appended, for its record.
        folder: where its files are put.
        env: its environment.
    """

    def __init__(self, command: Sequence[str], folder: Path, env: Mapping[str, str] = os.environ) -> None:
        self.mark = uuid.uuid4().hex
        self.out, self.log = folder / f"{self.mark}.json", folder / f"{self.mark}.log"
        scratch = folder / "tmp"  # for the temporary files that a child leaves lying about when it is killed
        scratch.mkdir(exist_ok=True)
        own = {
            _MARK: self.mark,
            "TMPDIR": str(scratch),
            # Ray keeps its sockets where it always would: the path of a socket may not be long.
            "RAY_TMPDIR": env.get("RAY_TMPDIR") or env.get("TMPDIR") or "/tmp",
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",  # the log is for what went wrong
            "PYTHONFAULTHANDLER": "1",  # a crash in native code says where
        }
        self.started = time.monotonic()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--out", str(self.out)],
                stdin=subprocess.PIPE,  # closes when this process is gone, which ends the child
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**env, **own},
                start_new_session=True,  # Ctrl-C comes to this process, which ends the child
            )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def wait(self, timeout: float, tick: Callable[[], None]) -> Outcome:
        """Wait until the process has ended, or its time is up.

        Args:
            timeout: seconds since its start.
            tick: called several times a second.
        """
        problem = ""
        while self.process.poll() is None:
            if time.monotonic() - self.started > timeout:
                problem = f"did not end within {timeout:g} s"
                break
            tick()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.1)
        else:
            problem = _describe_exit(self.process.returncode)
        record: dict[str, Any] = json.loads(self.out.read_text()) if self.out.exists() else {}
        if not record and not problem:
            problem = "ended without a result"
        return Outcome(record, problem, self.log.read_text(errors="replace"))

    def end(self) -> None:
        """Leave nothing of the process: not its workers, which have sessions of their own, nor daemons."""
        try:
            if self.process.poll() is None:
                self.process.terminate()  # lets the launchers clean up after themselves
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(GRACE)
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            if self.process.stdin is not None:
                self.process.stdin.close()
            deadline = time.monotonic() + GRACE
            while (family := marked_processes(self.mark)) and time.monotonic() < deadline:
                for pid in family:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.02)


def without_launcher(env: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which a trainer launches its own workers, whoever launched this process.

    Args:
        env: the environment of this process.
    """
    return {name: value for name, value in env.items() if not _OUTER_LAUNCHER.fullmatch(name)}


def marked_processes(mark: str) -> list[int]:
    """Return the ids of all living processes that a child and its children have started.

    Workers and daemons have sessions of their own, and other parents once theirs are gone. What all inherit is the
    environment. Where there is no ``/proc``, the list is empty.
    """
    found = []
    wanted = f"{_MARK}={mark}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended meanwhile, or is another user's
            if wanted in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def _describe_exit(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}" if code else ""


def _be_child(strategy: str | None, part: str | None, out: Path) -> int:
    """Do what a child is for, and leave a record of the result or of the exception."""
    try:
        if part:
            inspect_here(part, out)
        else:
            assert strategy is not None
            _write(out, {"measured": asdict(probe(strategy))})
    except Exception as error:  # whatever it is, it is the answer
        from itwinai.errors import WorkerError
        from itwinai.launchers.failure import RemoteTraceback

        if isinstance(error.__cause__, RemoteTraceback):  # of the worker that failed first
            text = str(error.__cause__)
        else:
            # A worker that died without an exception has left what it had to say in the log.
            text = "" if isinstance(error, WorkerError) else traceback.format_exc()
        _write(out, {"error": _summary(error), "traceback": text})
        return 1
    return 0


def _write(out: Path, record: Mapping[str, Any]) -> None:
    """Write a record that appears whole or not at all."""
    part = out.with_suffix(".part")
    part.write_text(json.dumps(record))
    part.replace(out)


def _summary(error: BaseException) -> str:
    message = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


# --- what is installed, and on what machine -----------------------------------------------------------------


def is_installed(package: str) -> bool:
    """Tell whether a package can be found; it is not imported."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def inspect(timeout: float, folder: Path, progress: Progress) -> dict[str, Any]:
    """Return what only becomes known by importing packages.

    Args:
        timeout: seconds.
        folder: for files of children.
        progress: is told what goes on.

    Returns:
        Facts by the names that `inspect_here` gives them. What could not be imported is ``{"error": why}``.
    """
    # The packages behind strategies are imported by their trials; Horovod has to be asked what was built into it.
    parts = ["machine", *(name for name in ("horovod", "mlflow", "wandb") if is_installed(name))]
    progress.start("looking at what is installed")
    facts: dict[str, Any] = {}
    with ExitStack() as stack:
        children = {part: stack.enter_context(Child([*_SELF, "--inspect", part], folder)) for part in parts}
        for part, process in children.items():
            outcome = process.wait(timeout, progress.tick)
            facts |= outcome.record
            unfinished = next((step for step in inspections(part) if step not in facts), None)
            if outcome.problem and unfinished is not None:
                facts[unfinished] = {"error": f"import {unfinished}: {outcome.problem}"}
    return facts


def inspect_here(part: str, out: Path) -> None:
    """Import something in this process and write down what it says of itself.

    Args:
        part: ``machine``, or an optional package.
        out: the file for the facts; it is written after each step, in case the next one never ends.
    """
    facts: dict[str, Any] = {}
    for name, step in inspections(part).items():
        try:
            facts[name] = step()
        except Exception as error:  # imports run anybody's code, and what is wrong with it is what is asked here
            facts[name] = {"error": _summary(error)}
        _write(out, facts)


def inspections(part: str) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what one child looks at, in this order."""
    if part == "machine":
        return {"host": _host, "torch": _torch, "lightning": lambda: _imported("lightning"), "launcher": _launcher}
    return {part: _horovod if part == "horovod" else lambda: _imported(part)}


def _imported(package: str) -> dict[str, Any]:
    import_module(package)
    return {}


def _host() -> dict[str, Any]:
    name = socket.gethostname()
    try:
        return {"name": name, "address": socket.gethostbyname(name)}
    except OSError as error:
        return {"name": name, "address": None, "unresolved": str(error)}


def _torch() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "gpus": [{"name": gpu.name, "bytes": gpu.total_memory} for gpu in gpus],
    }


def _launcher() -> dict[str, Any]:
    """Ask what the trainer asks: who has started this process?"""
    from itwinai.launchers.environment import find_outer_environment, launcher_name

    environment = find_outer_environment()
    if environment is None:
        return {"name": None}
    return {"name": launcher_name(environment), "workers": environment.world_size()}


def _horovod() -> dict[str, Any]:
    hvd = import_module("horovod.torch")
    built = [name for name in ("mpi", "gloo", "nccl", "ccl", "ddl") if getattr(hvd, f"{name}_built")()]
    return {"controllers": [name for name in built if name in ("mpi", "gloo")], "operations": built}


def describe_installed(facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return version and details of every package, or its install line; ``error`` says that it cannot be imported.

    Args:
        facts: what `inspect` returned.
    """
    installed: dict[str, dict[str, Any]] = {"python": {"version": platform.python_version()}}
    for name in (*BASE, *INSTALL):
        if not is_installed(name):
            installed[name] = {"version": None, "install": INSTALL.get(name, f"pip install {name}")}
            if name in BASE:
                installed[name]["error"] = "not installed"
            continue
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:  # a package without metadata, as on a PYTHONPATH
            version = "of unknown version"
        installed[name] = {"version": version, **facts.get(name, {})}
    return installed


def describe_machine(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what this machine offers, and who has started this process.

    Args:
        facts: what `inspect` returned.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shm = shutil.disk_usage("/dev/shm") if os.path.isdir("/dev/shm") else None
    slurm = {name: os.environ.get(f"SLURM_{name.upper()}") for name in ("job_id", "nnodes", "nodelist")}
    return {
        "host": {"name": socket.gethostname(), **facts.get("host", {})},
        "cores": {"usable": usable, "total": os.cpu_count() or usable},
        "memory": {"total": min(total, _memory_limit() or total), "available": _available_memory()},
        "shm": None if shm is None else {"total": shm.total, "free": shm.free},
        "launcher": facts.get("launcher", {"name": None}),
        "slurm": slurm if slurm["job_id"] else None,
    }


def _memory_limit() -> int | None:
    """Return the memory that the container or job may use, in bytes, or None where there is no limit."""
    with suppress(OSError):
        own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        folder = Path("/sys/fs/cgroup", own.strip("/"))
        files = [level / "memory.max" for level in (folder, *folder.parents)]
        limits = [file.read_text().strip() for file in files if file.is_file()]
        return min((int(limit) for limit in limits if limit.isdigit()), default=None)
    return None


def _available_memory() -> int | None:
    with suppress(OSError):
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    return None


# --- the strategies -----------------------------------------------------------------------------------------


def missing_package(strategy: str) -> str:
    """Return the install line of the first package that a strategy needs and that is not here, or ''."""
    needed = [package for package in INSTALL if package in strategy.split("_")]
    return next((INSTALL[package] for package in needed if not is_installed(package)), "")


def try_strategy(name: str, timeout: float, folder: Path, progress: Progress) -> Trial:
    """Train with a strategy, in a process of its own.

    Args:
        name: the strategy's name.
        timeout: seconds after which the process is ended.
        folder: for files of the process.
        progress: is told that time passes.
    """
    install = missing_package(name)
    if install:
        return Trial(name, install=install)
    with Child([*_SELF, "--probe", name], folder, without_launcher(os.environ)) as process:
        outcome = process.wait(timeout, progress.tick)
    return judge(name, outcome)


def judge(name: str, outcome: Outcome) -> Trial:
    """Decide whether a strategy works.

    Args:
        name: the strategy's name.
        outcome: what its process left.
    """
    if outcome.problem:
        error = outcome.record.get("error") or outcome.problem
        return Trial(name, error=error, cause=last_lines(outcome.record.get("traceback") or outcome.log))
    measured = Measured(**outcome.record["measured"])
    if not measured.weight_difference <= TOLERANCE:  # NaN is not below it either
        error = (
            f"the weights after {STEPS} steps differ from those of one process by {measured.weight_difference:.1e}, "
            f"relative to the largest; allowed is {TOLERANCE:.0e}"
        )
        return Trial(name, error=error)
    return Trial(name, measured)


def last_lines(text: str, limit: int = CAUSE_LINES, width: int = 200) -> tuple[str, ...]:
    """Return the last lines of a log or a traceback that say something, without the colours of terminals."""
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    # Python underlines the part of a line that failed; without the start of the traceback that only takes room.
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip(" \t^~")]
    return tuple(line if len(line) <= width else f"{line[: width - 3]}..." for line in lines[-limit:])


def probe(strategy: str) -> Measured:
    """Train with a strategy and with one process, and compare.

    Args:
        strategy: the strategy's name.
    """
    import torch

    from itwinai.launchers.worker import die_with_parent
    from itwinai.trainer import ItwinaiTrainer

    die_with_parent(os.dup(0))
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    accelerator = "gpu" if torch.cuda.device_count() >= WORKERS else "cpu"
    torch.manual_seed(0)
    alone = make_module()
    module = copy.deepcopy(alone)

    def fit(module: LightningModule, **flags: Any) -> float:
        trainer = ItwinaiTrainer(
            **flags,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        started = time.time()
        trainer.fit(module)
        return started

    # What is printed is shown after a crash or a hang, and says how far it came.
    print("doctor: training with one process", flush=True)
    fit(alone, devices=1, accelerator="cpu")
    print(f"doctor: starting {WORKERS} workers", flush=True)
    started = fit(module, strategy=strategy, devices=WORKERS, accelerator=accelerator)
    print("doctor: the workers have trained", flush=True)
    measured: dict[str, float] = module.measured
    if measured["workers"] != WORKERS:
        raise RuntimeError(f"{WORKERS} workers were asked for, and {measured['workers']:g} trained")
    return Measured(
        workers=WORKERS,
        device="cuda" if accelerator == "gpu" else "cpu",
        latency_us=measured["latency"] * 1e6,
        bandwidth_gb_s=LARGE / measured["seconds"] / 1e9,
        bus_bandwidth_gb_s=LARGE / measured["seconds"] / 1e9 * 2 * (WORKERS - 1) / WORKERS,
        start_s=measured["ready"] - started,
        weight_difference=weight_difference(module.state_dict(), alone.state_dict()),
    )


def make_module() -> Any:
    """Return a tiny LightningModule that measures the all-reduce of its strategy before it trains."""
    import torch
    from lightning.pytorch import LightningModule
    from torch.utils.data import DataLoader, TensorDataset

    class TinyModule(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
            self.measured: dict[str, float] = {}

        def train_dataloader(self) -> DataLoader:
            generator = torch.Generator().manual_seed(1)
            samples = STEPS * GLOBAL_BATCH
            inputs, targets = (torch.randn(samples, width, generator=generator) for width in (6, 2))
            return DataLoader(TensorDataset(inputs, targets), batch_size=GLOBAL_BATCH // self.trainer.world_size)

        def on_train_start(self) -> None:
            workers = self.trainer.world_size
            if workers == 1:
                return
            strategy = self.trainer.strategy
            ready = time.time()
            print(f"doctor: rank {self.global_rank} measures the all-reduce", flush=True)
            measured = measure_all_reduce(strategy.reduce, self.global_rank, workers, self.device)
            print(f"doctor: rank {self.global_rank} trains", flush=True)
            # Comes back to the process that called fit(), as every plain attribute does.
            self.measured = {"workers": workers, "ready": ready, **measured}

        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
            inputs, targets = batch
            return torch.nn.functional.mse_loss(self.layers(inputs), targets)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return TinyModule()


def measure_all_reduce(
    reduce: Callable[..., torch.Tensor], rank: int, workers: int, device: torch.device
) -> dict[str, float]:
    """Check and time the sum of a tensor over all workers; each of them has to call this.

    Args:
        reduce: the strategy's.
        rank: of this worker.
        workers: how many there are.
        device: of this worker.

    Returns:
        ``latency`` of one number and ``seconds`` for `LARGE` bytes, both medians in seconds.

    Raises:
        RuntimeError: the sum is wrong.
    """
    import torch

    def wait_for_device() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def median_seconds(tensor: torch.Tensor, warm_up: int, repetitions: int) -> float:
        times = []
        for _ in range(warm_up + repetitions):
            wait_for_device()
            started = time.perf_counter()
            reduce(tensor, reduce_op="sum")
            wait_for_device()
            times.append(time.perf_counter() - started)
        return statistics.median(times[warm_up:])

    for length in (1, LARGE // 4):
        # Small whole numbers, whose sums are exact.
        values = torch.arange(length, dtype=torch.float32, device=device) % 1000 + 1
        total = reduce(values * (rank + 1), reduce_op="sum")
        expected = values * (workers * (workers + 1) // 2)
        wrong = int((total != expected).sum())
        if wrong:
            raise RuntimeError(f"rank {rank}: {wrong} of {length} sums over {workers} workers are wrong")
    return {
        # Zeros, because the sum replaces the tensor, and would outgrow float32.
        "latency": median_seconds(torch.zeros(1, device=device), warm_up=10, repetitions=50),
        "seconds": median_seconds(torch.zeros(LARGE // 4, device=device), warm_up=3, repetitions=10),
    }


def weight_difference(weights: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor]) -> float:
    """Return the largest difference between two models, relative to the largest weight of its tensor."""
    if weights.keys() != reference.keys():
        return float("inf")
    differences = [
        float((weights[name].cpu() - expected).abs().max()) / (float(expected.abs().max()) or 1.0)
        for name, expected in reference.items()
    ]
    return float("nan") if any(value != value for value in differences) else max(differences)


# --- how it is printed --------------------------------------------------------------------------------------


def _format_section(title: str, rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in rows), ""])


def format_installed(installed: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the section "Installed"."""
    rows: list[tuple[str, str]] = []
    for name, package in installed.items():
        if package["version"] is None:
            rows.append((name, f"not installed: {package['install']}"))
            continue
        parts = [package["version"]]
        if "error" in package:
            parts.append(f"DOES NOT WORK: {package['error']}")
        elif name == "torch" and "cuda" in package:
            parts.append(
                f"CUDA {package['cuda']}"
                if package["cuda"]
                else f"ROCm {package['rocm']}"
                if package["rocm"]
                else "built for the CPU only"
            )
        elif name == "horovod" and "controllers" in package:
            parts += [f"{part} {', '.join(package[part]) or 'none'}" for part in ("controllers", "operations")]
        rows.append(("Python" if name == "python" else name, "; ".join(parts)))
        gpus = package.get("gpus", [])
        rows += [(f"  GPU {index}", f"{gpu['name']}, {_size(gpu['bytes'])}") for index, gpu in enumerate(gpus)]
        if name == "torch" and (package.get("cuda") or package.get("rocm")) and not gpus:
            rows.append(("  GPUs", "none is visible to torch"))
    return _format_section("Installed", rows)


def format_machine(machine: Mapping[str, Any]) -> str:
    """Return the section "This machine"."""
    host, cores, memory, shm, slurm = (machine[key] for key in ("host", "cores", "memory", "shm", "slurm"))
    if host.get("address"):
        resolved = f"resolves to {host['address']}"
    else:
        resolved = (
            f"DOES NOT RESOLVE ({host.get('unresolved') or host.get('error', 'not asked')}): runs on several nodes "
            "need it, see /etc/hosts"
        )
    available = f", {_size(memory['available'])} available" if memory["available"] is not None else ""
    shm_text = "there is none"
    if shm is not None:
        small = "; small: Ray and DataLoader workers may fail (docker: --shm-size=2g)" * (shm["total"] < SMALL_SHM)
        shm_text = f"{_size(shm['total'])}, {_size(shm['free'])} free{small}"
    launcher = machine["launcher"]
    if "error" in launcher:
        launched = launcher["error"]
    elif launcher["name"]:
        launched = f"{launcher['name']}, {launcher['workers']} workers; what is tried below launches its own"
    else:
        launched = "none: a trainer launches its own workers"
    rows = [
        ("host", f"{host['name']}, {resolved}"),
        ("cores", f"{cores['usable']}" + f" usable of {cores['total']}" * (cores["usable"] != cores["total"])),
        ("memory", f"{_size(memory['total'])}{available}"),
        ("/dev/shm", shm_text),
        ("launcher", launched),
        ("SLURM", f"job {slurm['job_id']}, nodes {slurm['nodelist'] or '?'}" if slurm else "no allocation"),
    ]
    return _format_section("This machine", rows)


_HEADER = f"{'works':<5}{'latency':>11}{'bandwidth':>13}{'start':>10}"


def name_width(strategies: Sequence[str]) -> int:
    """Return the width of the table's first column."""
    return max(len(name) for name in (*strategies, "strategy"))


def format_header(width: int) -> str:
    """Return the head of the table; its rows are printed one by one, as they become known."""
    return f"  {'strategy':<{width}}  {_HEADER}\n  {'-' * (width + 2 + len(_HEADER))}"


def format_trial(trial: Trial, width: int) -> str:
    """Return a row of the table."""
    if trial.install:
        row = f"not installed: {trial.install}"
    elif trial.measured is None:
        row = f"{'NO':<7}{trial.error if len(trial.error) <= 70 else trial.error[:67] + '...'}"
    else:
        measured = trial.measured
        bandwidth = f"{measured.bandwidth_gb_s:.2f} GB/s"
        row = f"{'yes':<5}{measured.latency_us:>8.0f} us{bandwidth:>13}{measured.start_s:>8.1f} s"
    return f"  {trial.strategy:<{width}}  {row}"


def format_end(trials: Sequence[Trial], broken: Sequence[str]) -> str:
    """Return what follows the table: what its numbers are, the causes of failures, and the sum of it all.

    Args:
        trials: the strategies that were tried.
        broken: installed packages that cannot be imported.
    """
    lines = [""]
    measured = [trial.measured for trial in trials if trial.measured is not None]
    if measured:
        largest = max(one.weight_difference for one in measured)
        lines += [
            # For two workers the factor 2 (n - 1) / n is 1.
            "  latency    all-reduce of one number",
            f"  bandwidth  all-reduce of {LARGE // 2**20} MiB; the bus bandwidth of {WORKERS} workers is the same",
            "  start      from fit() to the first step",
            f"  weights    after {STEPS} steps as with one process: they differ by {largest:.0e} at most",
            "",
        ]
    for trial in trials:
        if trial.error:
            lines += [f"{trial.strategy}: {trial.error}", *(f"    {line}" for line in trial.cause), ""]
    failed = [*broken, *(trial.strategy for trial in trials if trial.error and trial.strategy not in broken)]
    lines.append(f"Does not work: {', '.join(failed)}." if failed else "All that was tried works.")
    return "\n".join(lines)


def _size(number: int) -> str:
    return f"{number / GIB:.1f} GiB" if number >= GIB else f"{number / 2**20:.0f} MiB"


if __name__ == "__main__":
    # Not the __main__ of this run: workers must find what is pickled under the module's own name.
    from itwinai.cli import doctor

    sys.exit(doctor.main(sys.argv[1:]))
