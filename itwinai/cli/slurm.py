"""`itwinai slurm`: write, submit and follow jobs of a SLURM machine."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itwinai.cli.arguments import ArgumentParser, values_of_axis
from itwinai.config.source import named_configs
from itwinai.errors import ConfigurationError, did_you_mean

if TYPE_CHECKING:
    from itwinai.slurm.job import Job

_USAGE = """itwinai slurm [COMMAND] [-c CONFIG] [--submit] [flags]
       itwinai slurm [flags] -- SCRIPT.py [arguments]
       itwinai slurm status|follow|cancel|resume [FOLDER]
       itwinai slurm sites [NAME] [-c CONFIG]"""

_EPILOG = """
COMMAND is fit (if there is none), validate, test, predict, tune or benchmark. Flags that are not listed here are those
of this command: --strategy, --trainer.max_epochs=5. A config may have the flags above in a section, which other
commands leave aside:

  slurm:
    site: nvidia-infiniband
    account: me
    time: 02:00:00
    sbatch: {nice: 100}

examples:
  itwinai slurm -c config.yaml --nodes 2 --gpus-per-node 4 --strategy deepspeed        # print the script
  itwinai slurm -c config.yaml --nodes 2 --gpus-per-node 4 --submit --follow
  itwinai slurm -c config.yaml --site auto --axis model.lr=0.1,0.01,0.001 --submit     # an array of three
  itwinai slurm tune -c config.yaml --nodes 4 --time 04:00:00 --submit
  itwinai slurm --nodes 2 --gpus-per-node 4 -- train.py --epochs 5

docs/how-to/slurm.md leads a new user from here to a job.
"""

_OPTION_HELP = {
    "partition": "partition; `sinfo` lists them",
    "account": "account that pays",
    "qos": "quality of service",
    "time": "time limit, as HH:MM:SS or D-HH:MM:SS",
    "mem": "memory of each node, as 64G",
    "constraint": "features that nodes must have",
    "reservation": "reservation to run in",
    "nodelist": "nodes to run on",
    "exclude": "nodes to leave out",
    "array": "indices of an array, as 0-9 or 0-9%%2 for two at a time; the command reads SLURM_ARRAY_TASK_ID",
    "dependency": "jobs to wait for, as afterok:1234",
    "begin": "earliest start, as 20:00 or now+1hour",
    "mail-user": "address for mails",
    "mail-type": "when to mail: BEGIN, END, FAIL, ALL...",
    "job-name": "name of the job",
    "comment": "any text",
    "signal": "signal before the time limit [B:USR1@120, with which a run saves and resumes]",
}
# Flags of commands that have no dot in their name, by command. Those of benchmark are checked in the job.
_OF_RUNS = (
    *("strategy", "devices", "num-nodes", "num_nodes", "logger", "ckpt", "ckpt_path", "watch", "seed_everything"),
    *("model", "data", "optimizer", "lr_scheduler", "weights_only", "verbose", "unify-lightning", "config"),
)
_FLAGS = {
    "tune": ("config", "resume", "retrain-best", "strategy", "devices", "num-nodes", "logger"),
    **dict.fromkeys(("fit", "validate", "test"), (*_OF_RUNS, "output")),
    "predict": (*_OF_RUNS, "output", "columns", "split", "batch-size", "batch_size", "overwrite", "return_predictions"),
}


def main(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: the arguments after ``slurm``.

    Raises:
        ConfigurationError: what is asked for makes no sense.
        SlurmError: SLURM refuses the job, or does not answer.
    """
    others = commands_below()
    if argv and argv[0] in others:
        return others[argv[0]](argv[1:])

    from itwinai.slurm.plan import COMMANDS

    command = "fit"
    if argv and not argv[0].startswith("-"):
        command, argv = argv[0], argv[1:]
        if command not in COMMANDS:
            known = (*COMMANDS, *others)
            raise ConfigurationError(
                f"There is no `itwinai slurm {command}`.{did_you_mean(command, known)} There are {', '.join(known)}."
            )
    script: list[str] = []
    if "--" in argv:
        place = argv.index("--")
        argv, script = argv[:place], argv[place + 1 :]
    return _make(command, argv, script)


def commands_below() -> dict[str, Callable[[list[str]], int]]:
    """Return the commands below this one that write no job."""
    return {"sites": _sites, "status": _status, "follow": _follow, "cancel": _cancel, "resume": _resume}


def _make(command: str, argv: list[str], script: list[str]) -> int:
    parser = _parser()
    given, arguments = parser.parse_known_args(argv)
    if script:
        if arguments or given.config:
            parser.error(f"a script comes with its own arguments, after it: {' '.join(arguments) or '-c'}")
        command, arguments = "python", script
    else:
        given.config = named_configs(given.config, f"itwinai slurm {command}")
        _check_flags(parser, command, arguments)
        arguments = [*(word for path in given.config for word in ("-c", path)), *arguments]

    from itwinai.slurm.plan import plan_job
    from itwinai.slurm.submission import new_folder, submit_job

    submits = given.submit or given.follow
    folder = None if given.job_folder is None else Path(given.job_folder)
    axes = dict(values_of_axis(one) for one in given.axis)
    if submits and folder is None and axes:
        folder = new_folder(f"itwinai-{command}", None).absolute()
    job_script = plan_job(
        command,
        arguments,
        _options(given),
        site=given.site,
        axes=axes,
        folder=folder,
        chain=given.chain,
        checks_nodes=not given.no_check,
    )
    if given.check:
        if job_script.options.container is not None:
            raise ConfigurationError("--check cannot look into a container: give the Python of a venv, without one.")
        job_script = dataclasses.replace(
            job_script, name="itwinai-check", only_checks=True, variants=(), max_requeues=0, chain=1
        )
    if given.site == "auto":
        site = "\n".join(f"  {line}" for line in job_script.site.text().splitlines())
        print(f"site proposed from sinfo; `itwinai slurm sites auto` prints it for a file:\n{site}", file=sys.stderr)
    if caveat := job_script.caveat():
        print(f"itwinai: warning: {caveat}", file=sys.stderr)
    if not submits:
        print(job_script.text(), end="")
        return 0
    job = submit_job(job_script, folder)
    print(f"job {' '.join([job.number, *job.followers])} submitted; its files are in {_shown(job.folder)}")
    if given.follow:
        return _followed(job)
    _say_how(job)
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="itwinai slurm",
        usage=_USAGE,
        description="Write the job script of a command of itwinai, or of a script of yours; submit it; follow it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "-c",
        "--config",
        action="append",
        metavar="FILE",
        help="config file of the command; given several times, the later ones win [config.yaml]",
    )
    add("--submit", action="store_true", help="submit the script, and return; without, it is printed")
    add(
        "--follow", action="store_true", help="submit it, and show state, place in the queue and log until it has ended"
    )
    add("--site", metavar="NAME", help="name of a site, or auto for one that is proposed from sinfo")
    add("--job-folder", metavar="FOLDER", help="for script, log and results; by default a new one in slurm/")
    size = parser.add_argument_group("size")
    size.add_argument("--nodes", metavar="N", help="nodes [1]")
    size.add_argument(
        "--gpus-per-node", metavar="N", help="GPUs of each node [all that the site's nodes have]; 0 for none"
    )
    size.add_argument("--tasks-per-node", metavar="N", help="workers on each node [one for each GPU; one without GPUs]")
    size.add_argument(
        "--cpus-per-task", metavar="N", help="cores of each worker [a node's share, if the site says how many it has]"
    )
    python = parser.add_argument_group("Python in the job [the one of this command]")
    python.add_argument(
        "--modules", metavar="NAME", action="append", help="environment module to load; may be given several times"
    )
    python.add_argument("--venv", metavar="FOLDER", help="folder of a virtual environment to activate")
    python.add_argument("--conda", metavar="NAME", help="name or folder of a conda environment to activate")
    python.add_argument("--container", metavar="IMAGE", help="image of Apptainer to run workers in")
    python.add_argument("--bind", action="append", metavar="FOLDER", help="folder that the container sees, as FROM:TO")
    python.add_argument("--python", metavar="FILE", help="interpreter")
    python.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="environment variable")
    python.add_argument("--setup", action="append", metavar="LINE", help="line of bash that runs before the workers")
    resuming = parser.add_argument_group("longer than a job may take")
    resuming.add_argument("--max-requeues", help="queue an interrupted job again, at most N times [10 for fit]")
    resuming.add_argument(
        "--chain", type=int, default=1, metavar="N", help="instead, submit N jobs that follow each other"
    )
    checks = parser.add_mutually_exclusive_group()
    checks.add_argument("--check", action="store_true", help="a job that checks the nodes and starts no workers")
    checks.add_argument("--no-check", action="store_true", help="do not check the nodes before the workers start")
    add(
        "--axis",
        action="append",
        default=[],
        metavar="PATH=VALUES",
        help="an array with a job for each value: model.lr=0.1,0.01; given several times, all combinations",
    )
    sbatch = parser.add_argument_group("options of sbatch")
    for name, text in _OPTION_HELP.items():
        sbatch.add_argument(f"--{name}", metavar="VALUE", help=text)
    sbatch.add_argument(
        "--sbatch", action="append", default=[], metavar="NAME=VALUE", help="any other one; a name alone is a switch"
    )
    return parser


def _options(given: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the job that flags say."""
    names = [
        *("nodes", "gpus_per_node", "tasks_per_node", "cpus_per_task", "modules", "venv", "conda", "container", "bind"),
        *("python", "setup", "max_requeues", *(name.replace("-", "_") for name in _OPTION_HELP)),
    ]
    options = {name: value for name in names if (value := getattr(given, name)) is not None}
    if given.env:
        options["environment"] = dict(_pair("--env", one) for one in given.env)
    if given.sbatch:
        options["sbatch"] = {name: value for name, _, value in (one.partition("=") for one in given.sbatch)}
    return options


def _pair(flag: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigurationError(f"{flag} {text}: write NAME=VALUE.")
    return name, value


def _check_flags(parser: ArgumentParser, command: str, arguments: Sequence[str]) -> None:
    """Refuse flags that neither this command nor that of the job has: a job would tell so hours later."""
    if command not in _FLAGS:
        return
    known = [f"--{name}" for name in _FLAGS[command]]
    own = [flag for flag in parser._option_string_actions if flag.startswith("--")]
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.startswith("--") and "." not in flag and flag.rstrip("+") not in known:
            raise ConfigurationError(
                f"Neither `itwinai slurm` nor `itwinai {command}` has a flag {flag}.{did_you_mean(flag, own + known)} "
                "See `itwinai slurm --help`. Options of sbatch that are not there are given as --sbatch NAME=VALUE."
            )


def _sites(argv: list[str]) -> int:
    parser = ArgumentParser(
        prog="itwinai slurm sites",
        description="List the sites; print the file of one, or of one that is proposed for this machine (auto).",
    )
    parser.add_argument("name", nargs="?", help="of a site, or auto")
    parser.add_argument("-c", "--config", help="config beside whose folder sites/ is looked through")
    given = parser.parse_args(argv)

    from itwinai.slurm.site import Site, find_site, site_files
    from itwinai.slurm.site_proposal import propose_site

    beside = Path(given.config).parent if given.config else Path()
    if given.name:
        site = propose_site() if given.name == "auto" else find_site(given.name, beside)
        print(Path(site.path).read_text(encoding="utf-8") if site.path else site.text(), end="")
        return 0
    rows = [(name, Site.read(path).description, _shown(path)) for name, path in site_files(beside).items()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, description, path in rows:
        print(f"{name:<{widths[0]}}  {description:<{widths[1]}}  {path}")
    return 0


def _job_of(argv: list[str], what: str, description: str) -> Job:
    parser = ArgumentParser(prog=f"itwinai slurm {what}", description=description)
    parser.add_argument("folder", nargs="?", type=Path, help="of the job; by default the last one in slurm/")
    folder = parser.parse_args(argv).folder

    from itwinai.slurm.job import Job
    from itwinai.slurm.submission import newest_job

    return newest_job() if folder is None else Job.read(folder)


def _status(argv: list[str]) -> int:
    job = _job_of(argv, "status", "Show the state of a job, and what it has reached.")

    from itwinai.slurm.follow import state_text

    print(state_text(job, job.record()))
    print(f"files       {_shown(job.folder)}")
    for one in job.tasks or [job]:
        label = "" if one.task is None else f"task {one.task}"
        rows = [*one.labels]
        if one.is_over():
            result = one.result()
            rows += (
                [", ".join(f"{name}={value:.6g}" for name, value in result.metrics.items())] if result.metrics else []
            )
            rows += [result.best_checkpoint] if result.best_checkpoint else []
            if not result.succeeded:
                code = "" if result.exit_code is None else f", exit code {result.exit_code}"
                rows.append(f"{result.state.lower()}{code}{result.reason and f': {result.reason}'}")
                rows.append(f"log: {_shown(one.log_files()[0])}")
            rows = rows or ["completed, no metrics"]
        elif one.task is not None:
            rows.append(one.state.lower())
        for row in rows:
            print(f"{label:<12}{row}")
            label = ""
    return 0


def _follow(argv: list[str]) -> int:
    return _followed(_job_of(argv, "follow", "Show state, place in the queue and log of a job until it has ended."))


def _cancel(argv: list[str]) -> int:
    job = _job_of(argv, "cancel", "Remove a job from the queue, or end it.")
    job.cancel()
    print(f"job {job.number} is cancelled")
    return 0


def _resume(argv: list[str]) -> int:
    job = _job_of(argv, "resume", "Submit the job of a folder again, to go on from its newest checkpoint.")

    from itwinai.slurm.submission import resume_job

    resumed = resume_job(job)
    print(f"job {resumed.number} submitted; it goes on with the run in {_shown(resumed.folder)}")
    _say_how(resumed)
    return 0


def _followed(job: Job) -> int:
    from itwinai.slurm.follow import follow

    try:
        return follow(job)
    except KeyboardInterrupt:
        print()
        _say_how(job)
        return 130


def _say_how(job: Job) -> None:
    folder = _shown(job.folder)
    print(f"It runs without this command. Follow it: itwinai slurm follow {folder}")
    print(f"End it:                               itwinai slurm cancel {folder}")


def _shown(path: Path) -> str:
    """Return a path as it is typed in a shell here."""
    from itwinai.slurm.quoting import bash_word

    path = path.absolute()
    return bash_word(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
