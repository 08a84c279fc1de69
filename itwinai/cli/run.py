"""`itwinai run`: run the steps of a pipeline that have changed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from itwinai.cli.arguments import ArgumentParser
from itwinai.errors import ConfigurationError

if TYPE_CHECKING:
    from itwinai.pipelines import Pipeline, PipelineResult, Plan

_EPILOG = """
A pipeline is a file of steps. A step names a function or class of yours, or a command of itwinai; it refers to what
other steps return:

  steps:
    prepare:
      class_path: steps.prepare            # a function, or a class with run()
      init_args: {raw: raw.csv, parts: 3}
    train:
      fit: config.yaml                     # or validate, test, predict, tune, benchmark
      overrides: {data.path: "${steps.prepare}", trainer.max_epochs: 5}
    predict:
      predict: config.yaml
      ckpt: ${steps.train.checkpoint}

A step runs again if its config, the content of its inputs, the code of its package or the versions of the packages that
this code imports have changed. STEPS are names and ranges: train, prepare..train, ..train, train..

Every value is a flag too: --steps.prepare.parts=4, --steps.train.trainer.max_epochs=3.

examples:
  itwinai run pipeline.yaml --dry-run
  itwinai run pipeline.yaml prepare..train --steps.train.trainer.max_epochs 3
  itwinai run pipeline.yaml --on slurm
  itwinai run pipeline.yaml --export snakemake > Snakefile

docs/how-to/pipelines.md explains them.
"""


def main(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: the arguments after ``run``.

    Raises:
        ConfigurationError: the pipeline or an argument is wrong.
        PipelineError: a step needs the outputs of one that was not asked for, and has not run.
    """
    arguments, flags = _split(argv)
    given = _parser().parse_args(arguments)

    from itwinai.cli.signals import stop_on_signals
    from itwinai.pipelines import Pipeline
    from itwinai.pipelines.scheduler import StepsFailedError
    from itwinai.pipelines.steps_file import overrides_of

    if given.export and given.on:
        raise ConfigurationError("--export writes a file, and --on runs the steps: give one of them.")
    pipeline = Pipeline.from_yaml(given.pipeline, overrides_of(flags), given.folder)
    if given.export:
        print(pipeline.to_snakemake(), end="")
        return 0
    if given.dry_run:
        print(plan_text(pipeline.plan(given.steps, given.force)))
        return 0
    if given.on:
        return _submit(pipeline, given)
    try:
        with stop_on_signals():
            result = pipeline.run(given.steps, jobs=given.jobs, force=given.force)
    except StepsFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        # SLURM's supervisor has to know that a signal has ended a step, and which.
        return max(error.codes.values()) if min(error.codes.values()) > 128 else 1
    print(_summary(result, pipeline))
    return 0


def plan_text(plan: Plan) -> str:
    """Return a plan as a table, with a line about all."""
    from itwinai.reporting.formatting import count_text

    counts = {status: sum(one.status == status for one in plan.steps) for status in ("runs", "may run", "cached")}
    words = [f"{number} {status.replace('runs', 'to run')}" for status, number in counts.items() if number]
    return f"{plan}\n{count_text(len(plan.steps), 'step')}: {', '.join(words) or 'nothing to do'}"


def _submit(pipeline: Pipeline, given: argparse.Namespace) -> int:
    jobs = pipeline.submit(given.steps, given.force)
    if not jobs:
        print("all steps are cached: no job is needed")
        return 0
    width = max(map(len, jobs))
    for name, job in jobs.items():
        print(f"{name:<{width}}  job {job.number}  {job.folder}")
    print("They run without this command. `itwinai slurm follow FOLDER` shows one; the same command goes on later.")
    return 0


def _summary(result: PipelineResult, pipeline: Pipeline) -> str:
    from itwinai.pipelines.record import LOCK_FILE

    words = [f"{len(result.ran)} ran"] if result.ran else []
    words += [f"{len(result.cached)} cached"] if result.cached else []
    return f"{', '.join(words) or 'nothing to do'}; outputs in {result.folder}, what they were made with in {LOCK_FILE}"


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments of the command, and the flags that set values of the pipeline."""
    own: list[str] = []
    flags: list[str] = []
    waiting = list(reversed(argv))
    while waiting:
        argument = waiting.pop()
        if not argument.startswith(("--steps.", "--slurm.")):
            own.append(argument)
            continue
        flags.append(argument)
        if "=" not in argument and waiting and not waiting[-1].startswith("--"):
            flags.append(waiting.pop())
    return own, flags


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="itwinai run",
        usage="itwinai run PIPELINE [STEPS ...] [flags]",
        description="Run the steps of a pipeline that have changed, each in a process of its own.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("pipeline", metavar="PIPELINE", help="file of the pipeline")
    add("steps", metavar="STEPS", nargs="*", help="names and ranges of steps; by default all")
    add("--dry-run", action="store_true", help="show which steps would run, and why")
    add("--force", metavar="STEP", action="append", default=[], help="run this step in any case; may be repeated")
    add("--jobs", type=_number, metavar="N", help="steps that run at a time [number of cores]")
    add("--folder", type=Path, metavar="DIR", help="folder of the outputs [that of the file, or runs/NAME]")
    add("--on", choices=["slurm"], help="submit a job for each step, after those that it needs")
    add("--export", choices=["snakemake"], help="print the same steps as a Snakefile")
    return parser


def _number(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text}")
    return number
