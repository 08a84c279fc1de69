"""`itwinai benchmark`: which strategy a model should train under, and how far it scales."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itwinai.cli.arguments import ArgumentParser, values_of_axis
from itwinai.config.source import Given, given_by, named_configs
from itwinai.errors import ConfigurationError, did_you_mean

if TYPE_CHECKING:
    from itwinai.benchmark.settings import Settings

_EPILOG = """
other commands:
  itwinai benchmark report FOLDER          rebuild table, report and pictures from the records
  itwinai benchmark compare A B            two benchmarks side by side, with significant differences
  itwinai benchmark links                  measure latency and bandwidth between workers
  itwinai benchmark simulate               predict the time of a step on up to thousands of workers

examples:
  itwinai benchmark -c config.yaml --strategies ddp,deepspeed_stage_2,horovod,ray --workers 1,2,4
  itwinai benchmark -c config.yaml --strategies ddp --workers 1,2,4 --scaling strong,weak \\
      --axis trainer.precision=32-true,bf16-mixed --axis data.batch_size=32,128
  itwinai benchmark -c config.yaml --strategies ddp,horovod --workers 4,8,16 --workers-per-node 4 \\
      --slurm partition=gpu,account=me,gpus-per-node=4,time=01:00:00

A config may have a section with what the flags say, under which flags win:

  benchmark:
    strategies: [ddp, horovod]
    workers: [1, 2, 4]
    axes: {trainer.precision: [32-true, bf16-mixed]}

Ray's workers run on the cluster of --address or RAY_ADDRESS, if there is one. All other flags are those of
`itwinai fit`, for all runs: --trainer.accelerator=gpu. docs/how-to/benchmark.md says more.
"""

OTHERS: dict[str, tuple[str, str]] = {
    "report": (__name__, "_report"),
    "compare": (__name__, "_compare"),
    "simulate": ("itwinai.cli.benchmark_simulate", "simulate"),
    "links": ("itwinai.cli.benchmark_simulate", "links"),
}
"""Commands below this one, each with its module and its function there."""


def main(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: the arguments after ``benchmark``.

    Raises:
        ConfigurationError: the arguments are invalid.
    """
    if argv and argv[0] in OTHERS:
        module, name = OTHERS[argv[0]]
        command: Callable[[list[str]], int] = getattr(import_module(module), name)
        return command(argv[1:])
    if argv and not argv[0].startswith("-"):
        raise ConfigurationError(
            f"There is no `itwinai benchmark {argv[0]}`.{did_you_mean(argv[0], OTHERS)} There are {', '.join(OTHERS)}; "
            "without any of them, flags say what to run: `itwinai benchmark --help`."
        )
    return _run(argv)


def _run(argv: list[str]) -> int:
    parser = _parser()
    given, arguments = parser.parse_known_args(argv)
    _need_packages()
    configs = [part for config in named_configs(given.config, "itwinai benchmark") for part in ("-c", config)]
    settings = _settings(parser, given, given_by(configs).find("benchmark"))
    if given.address:
        os.environ["RAY_ADDRESS"] = given.address
    # As for a script: the config names classes in files of the current folder.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())

    from itwinai.benchmark.runner import Benchmark
    from itwinai.cli.signals import stop_on_signals
    from itwinai.config.lightning_cli import parsed

    command_line = parsed([*configs, *arguments])
    config = command_line.as_dict()
    name = _name(config)
    benchmark = Benchmark(
        settings=settings,
        config=config,
        folder=Path(given.folder or Path("benchmarks", name)).absolute(),
        name=name,
        slurm=None if given.slurm is None else dict(_pairs("--slurm", given.slurm)),
        workers_per_node=given.workers_per_node,
        check=command_line.check,
    )
    with stop_on_signals():
        record = benchmark.run(resume=given.resume or given.retry_failed, retry_failed=given.retry_failed)
    return 0 if any(measurement.status == "measured" for measurement in record.measurements) else 1


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="itwinai benchmark",
        usage="itwinai benchmark [-c CONFIG] --strategies NAMES --workers NUMBERS [flags]",
        description="Run a model under several strategies with several numbers of workers, and compare them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "-c",
        "--config",
        action="append",
        metavar="FILE",
        help="config file of `itwinai fit`; later ones override earlier ones [config.yaml]",
    )
    add("--strategies", metavar="NAMES", help="names, separated by commas")
    add("--workers", metavar="NUMBERS", help="numbers of workers, over all nodes, separated by commas")
    add("--repeats", type=int, help="runs of each cell (3); fewer leave no room for statistics")
    add("--scaling", help="strong (the workers divide one batch), weak, or strong,weak (strong)")
    add(
        "--axis",
        action="append",
        default=[],
        metavar="PATH=VALUES",
        help="vary anything else too: trainer.precision=32-true,bf16-mixed; given several times, all combinations",
    )
    add("--steps", type=int, help="minimum number of steps to measure (50)")
    add("--seconds", type=float, help="minimum number of seconds to measure (3)")
    add("--warmup", type=int, help="steps before the measurement (10)")
    add("--limit", type=float, help="seconds after which a run counts as hanging and is ended (600)")
    add("--threads", type=int, help="threads of each worker in all cells; by default cores // most workers of a node")
    add("--baseline", help="baseline of speed-ups: single, one process, or a strategy (single)")
    add("--extrapolate", help="numbers of workers to extrapolate to; by default up to eight times the largest")
    add("--folder", help="for records, table and report; by default benchmarks/NAME_OF_THE_MODEL")
    add("--resume", action="store_true", help="run what is missing in the folder; more may be requested than before")
    add("--retry-failed", action="store_true", help="the same, and repeat failed runs")
    add("--workers-per-node", type=int, help="maximum number of workers per node; by default all are on one")
    add("--address", help="of a Ray cluster, for the strategies of Ray; by default RAY_ADDRESS")
    add("--slurm", nargs="?", const="", metavar="OPTIONS", help="run as SLURM jobs, with these options of sbatch")
    return parser


def _settings(parser: argparse.ArgumentParser, given: argparse.Namespace, section: Given | None) -> Settings:
    """Return the settings of a benchmark: those of the config's section, and flags over them."""
    from itwinai.benchmark.settings import Settings

    if given.workers_per_node is not None and given.workers_per_node < 1:
        raise ConfigurationError(f"--workers-per-node must be at least 1; got {given.workers_per_node}.")
    flags: dict[str, Any] = {
        "strategies": given.strategies and _names(given.strategies),
        "workers": given.workers and _numbers("--workers", given.workers),
        "scalings": given.scaling and _names(given.scaling),
        "axes": dict(values_of_axis(one) for one in given.axis),
        "extrapolate": given.extrapolate and _numbers("--extrapolate", given.extrapolate),
    }
    flags |= {name: getattr(given, name) for name in ("repeats", "steps", "seconds", "warmup", "limit", "baseline")}
    flags |= {"threads": given.threads}
    values = {} if section is None or section.value is None else section.plain()
    where = "the section 'benchmark'" if section is None else f"{section.at}: benchmark"
    given_flags = {name: value for name, value in flags.items() if value not in (None, {})}
    whole = {**values, **given_flags} if isinstance(values, dict) else values
    for name, example in (("strategies", "ddp,horovod"), ("workers", "1,2,4")):
        # A key that is misspelt is told as such.
        if isinstance(whole, dict) and not whole.get(name) and set(whole) <= set(flags):
            parser.error(f"nothing says which {name} to compare: give --{name} {example}, or a section in the config")
    return Settings.from_mapping(whole, where)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    names = _names(text)
    if not names or not all(name.isdecimal() for name in names):
        raise ConfigurationError(f"{flag}={text}: write whole numbers with commas between, as in 1,2,4.")
    return tuple(int(name) for name in names)


def _pairs(flag: str, text: str) -> Sequence[tuple[str, str]]:
    """Return the options of ``name=value,name=value``; a name alone is a flag."""
    found = []
    for one in _names(text):
        name, _, value = one.partition("=")
        if not name:
            raise ConfigurationError(f"{flag} {text}: write NAME=VALUE with commas between, as in partition=gpu.")
        found.append((name, value))
    return found


def _name(config: dict[str, Any]) -> str:
    """Return the name of a benchmark: that of the model's class."""
    model = config.get("model")
    path = str(model.get("class_path", "")) if isinstance(model, dict) else ""
    return path.rpartition(".")[2] or "benchmark"


def _need_packages() -> None:
    from itwinai.errors import require

    for package in ("scipy", "matplotlib", "jinja2", "psutil"):
        require(package, "Install it with `pip install 'itwinai[benchmark]'`.", "itwinai benchmark")


def _report(argv: list[str]) -> int:
    parser = ArgumentParser(
        prog="itwinai benchmark report",
        description="Recreate table, report and plots of a benchmark from its records.",
    )
    parser.add_argument("folder", type=Path, help="of the benchmark")
    given = parser.parse_args(argv)
    _need_packages()

    from itwinai.benchmark.record_file import read_record
    from itwinai.benchmark.runner import conclude

    conclude(read_record(given.folder), given.folder)
    return 0


def _compare(argv: list[str]) -> int:
    parser = ArgumentParser(
        prog="itwinai benchmark compare",
        description="Show two benchmarks side by side, cell by cell, with significant differences marked.",
    )
    parser.add_argument("a", type=Path, help="folder of the reference benchmark")
    parser.add_argument("b", type=Path, help="folder of the other benchmark")
    parser.add_argument("-o", "--output", type=Path, help="write a page, too")
    given = parser.parse_args(argv)
    _need_packages()

    from itwinai.benchmark.comparison import compare
    from itwinai.benchmark.record_file import read_record
    from itwinai.benchmark.report.compare_report import comparison_text, write_comparison

    comparison = compare(read_record(given.a), read_record(given.b))
    print(comparison_text(comparison))
    if given.output is not None:
        write_comparison(comparison, given.output)
        print(f"page        {given.output}")
    return 0
