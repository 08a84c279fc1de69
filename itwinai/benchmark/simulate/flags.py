"""The flags of `itwinai benchmark simulate`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from itwinai.benchmark.simulate import units
from itwinai.benchmark.simulate.collectives import ALGORITHMS
from itwinai.benchmark.simulate.memory import PRECISIONS
from itwinai.errors import ConfigurationError

T = TypeVar("T")

WORKERS = "1,2,4,...,4096"
"""What is predicted by default, as far as batch and links go."""

_EPILOG = """
examples:
  itwinai benchmark links --workers 2,4 -o links.json
  itwinai benchmark simulate --from benchmarks/resnet --links links.json --workers 1,2,...,64 \\
      --node-latency 5us --node-bandwidth 25GB/s
  itwinai benchmark simulate --compute 120ms --gradients 100MB --parameters 25M --batch 4096 --workers-per-node 4 \\
      --latency 5us --bandwidth 200GB/s --node-latency 10us --node-bandwidth 25GB/s --strategies ddp,zero1,zero3
"""


def simulate_parser() -> argparse.ArgumentParser:
    """Return what reads the flags."""
    size, seconds, rate = (_type(read) for read in (units.size_in_bytes, units.seconds, units.bytes_per_second))
    number = _type(units.number)
    parser = argparse.ArgumentParser(
        prog="itwinai benchmark simulate",
        usage="itwinai benchmark simulate (--from FOLDER | --compute TIME --gradients SIZE ...)\n"
        "                                  (--links FILE | --latency TIME --bandwidth RATE ...) ...",
        description="Predict the time of a step on up to thousands of workers, from what one worker takes and what the "
        "links carry. It is a model, and says what it assumes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    work = parser.add_argument_group("one worker: from a benchmark, or by flags")
    add = work.add_argument
    add("--from", dest="folder", metavar="FOLDER", help="of a benchmark that has measured one worker")
    add("--axis", metavar="PATH=VALUE", action="append", default=[], help="of a benchmark that has varied more")
    told = "of forward and backward for a batch: 120ms; without a unit, seconds"
    add("--compute", type=seconds, metavar="TIME", help=told)
    add(
        "--gradients",
        type=size,
        metavar="SIZE",
        help="size of all gradients: 100MB; by default 4 bytes for each parameter",
    )
    add("--parameters", type=number, metavar="N", help="their number, for the memory: 25M")
    add("--batch", type=number, metavar="N", help="samples of a batch")
    add(
        "--optimizer",
        type=seconds,
        metavar="TIME",
        help="of the optimizer's step; with --from, its part of the computing time (as it was measured)",
    )
    add(
        "--other",
        type=seconds,
        metavar="TIME",
        help="of what does not depend on the samples; with --from, its part of the computing time",
    )
    add(
        "--variation",
        type=float,
        metavar="X",
        help="standard deviation of the computing time of steps, by its mean: 0.05",
    )
    add(
        "--backward-share",
        type=float,
        metavar="X",
        default=2 / 3,
        help="share of backward in the computing time (0.667)",
    )
    add(
        "--layers",
        help="gradients of the layers in the order of forward: 4MB,4MB,100MB; with weights of their "
        "computing time: 4MB:3,4MB:3,100MB:1",
    )
    add("--cores", type=float, metavar="X", help="of a node, where workers compute on the CPU")
    add(
        "--threads",
        type=int,
        metavar="N",
        help="that one worker computes with (as many as in the benchmark, or as there are cores)",
    )

    joined = parser.add_argument_group("the links: from a file, by flags, or both")
    add = joined.add_argument
    add("--links", type=Path, metavar="FILE", help="file that `itwinai benchmark links` has written")
    add("--latency", type=seconds, metavar="TIME", help="of a message within a node, or between any two workers: 5us")
    add("--bandwidth", type=rate, metavar="RATE", help="the same: 25GB/s, 200Gbit/s")
    add("--workers-per-node", type=int, metavar="N", help="without it, --latency and --bandwidth join any two workers")
    add("--node-latency", type=seconds, metavar="TIME", help="of a message between nodes")
    add(
        "--node-bandwidth",
        type=rate,
        metavar="RATE",
        help="of each worker, while all workers of a node send to other nodes",
    )

    how = parser.add_argument_group("what to predict")
    add = how.add_argument
    add("--strategies", help="with commas between (those of the benchmark, or ddp): ddp,zero1,zero2,zero3,...")
    add("--workers", help=f"numbers of workers ({WORKERS}, as far as batch and links go)")
    add("--scaling", choices=("strong", "weak"), help="strong (default) divides the batch, weak repeats it")
    add("--algorithm", choices=ALGORITHMS, help="of all-reduces (best; with links measured over gloo, ring)")
    add("--no-overlap", action="store_true", help="exchange gradients after backward, and not during it")
    add("--no-prefetch", action="store_true", help="under stage 3, gather parameters when they are needed")
    add("--bucket", type=size, metavar="SIZE", help="gradients that are exchanged together (25MiB)")
    add("--first-bucket", type=size, metavar="SIZE", help="the same, for the first of them (1MiB)")
    add("--accumulate", type=int, metavar="N", default=1, help="batches between two steps of the optimizer (1)")
    add("--precision", choices=PRECISIONS, default="fp32", help="for the memory; mixed has parameters in 16 bits")
    add("--csv", type=Path, metavar="FILE", help="file for the table")
    add("--picture", type=Path, metavar="FILE", help="file for a picture, .svg or .png")
    return parser


def _type(read: Callable[[str], T]) -> Callable[[str], T]:
    """Return a type of argparse, which shows the message of its own kind of error only."""

    def convert(text: str) -> T:
        try:
            return read(text)
        except ConfigurationError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def check(given: argparse.Namespace) -> None:
    """See that the flags say all that is needed, and nothing twice.

    Raises:
        ConfigurationError: they do not.
    """
    by_flags = [name for name in ("compute", "gradients", "parameters", "batch") if getattr(given, name)]
    if given.folder is not None and by_flags:
        raise ConfigurationError(f"--{by_flags[0]} and --from both say what one worker does. Give one of them.")
    if given.folder is None and given.compute is None:
        raise ConfigurationError(
            "Nothing is known of one worker. Give --from FOLDER of a benchmark, or --compute and --gradients."
        )
    if given.folder is None and given.gradients is None and given.parameters is None and given.layers is None:
        raise ConfigurationError("How much the workers exchange is not known. Give --gradients, 100MB for example.")
    for first, second in (("latency", "bandwidth"), ("node_latency", "node_bandwidth")):
        if (getattr(given, first) is None) != (getattr(given, second) is None):
            names = " and ".join(f"--{name.replace('_', '-')}" for name in (first, second))
            raise ConfigurationError(f"A link has both: {names}.")
    if given.links is None and given.latency is None:
        raise ConfigurationError(
            "Nothing is known of the links. Measure them with `itwinai benchmark links -o links.json` and give --links "
            "links.json, or give --latency and --bandwidth."
        )
    if given.links is not None and given.latency is not None:
        raise ConfigurationError("--links and --latency both say what joins the workers of a node. Give one of them.")
    if given.node_latency is not None and given.links is None and given.workers_per_node is None:
        raise ConfigurationError("--node-latency needs --workers-per-node: how many workers are on a node?")
    if given.axis and given.folder is None:
        raise ConfigurationError("--axis says which cells of a benchmark to take: it needs --from.")
    if given.threads is not None and given.threads < 1:
        raise ConfigurationError(f"A worker computes with at least one thread, and not {given.threads}.")
