"""`itwinai benchmark links` and `itwinai benchmark simulate`: what the links carry, and how far a model would scale."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from itwinai.cli.arguments import ArgumentParser

if TYPE_CHECKING:
    from itwinai.benchmark.simulate import Prediction, Workload
    from itwinai.benchmark.simulate.from_record import Comparison
    from itwinai.benchmark.simulate.links_file import MeasuredLinks

_WIDTH = 100

USELESS = 0.5
"""Median error of a model from which nothing follows."""


def links(argv: list[str]) -> int:
    """Measure the links between workers, and show them.

    Args:
        argv: the arguments after ``links``.

    Raises:
        ConfigurationError: what is asked for cannot be measured here.
        WorkerError: a worker has failed.
    """
    parser = ArgumentParser(
        prog="itwinai benchmark links",
        description="Time all-reduces of 1 KiB to 64 MiB between real workers, and fit latency and bandwidth to them. "
        "The workers are started here. Under srun, torchrun or mpirun they are those of the job; with several nodes "
        "the link between these is measured too, while all workers of the nodes use it.",
    )
    parser.add_argument("--workers", help="numbers of workers on a node (by default 2,4,... as there are)")
    parser.add_argument("--backend", choices=("gloo", "nccl"), help="nccl if there are GPUs, else gloo")
    parser.add_argument("-o", "--output", type=Path, help="file for the links, which `simulate --links` reads")
    given = parser.parse_args(argv)

    from itwinai.benchmark.simulate.links_file import write_links
    from itwinai.benchmark.simulate.measure_links import measure_links
    from itwinai.benchmark.simulate.units import numbers_of_workers

    measured = measure_links(None if given.workers is None else numbers_of_workers(given.workers), given.backend)
    if measured is None:  # rank 0 tells
        return 0
    _show_links(measured)
    if given.output is not None:
        write_links(measured, given.output)
        print(f"\nwritten: {given.output}")
    return 0


def simulate(argv: list[str]) -> int:
    """Predict the steps of more workers, and show them.

    Args:
        argv: the arguments after ``simulate``.

    Raises:
        ConfigurationError: something is missing, or makes no sense.
    """
    from itwinai.benchmark.simulate import flags

    given = flags.simulate_parser().parse_args(argv)
    flags.check(given)

    from itwinai.benchmark.record_file import read_record
    from itwinai.benchmark.simulate import asked
    from itwinai.benchmark.simulate import simulate as predict
    from itwinai.benchmark.simulate.from_record import compare
    from itwinai.benchmark.simulate.links_file import read_links
    from itwinai.benchmark.simulate.picture import check_picture, write_picture
    from itwinai.benchmark.simulate.strategies import exchange_of
    from itwinai.benchmark.simulate.table import prediction_table, write_predictions
    from itwinai.benchmark.simulate.words import topology_told, workload_told

    if given.picture is not None:
        check_picture(given.picture)
    measured = None if given.links is None else read_links(given.links)
    record = None if given.folder is None else read_record(given.folder)
    topology = asked.topology_asked(given, measured)
    options = asked.options_asked(given, measured)
    exchanges = [exchange_of(name, options) for name in asked.strategies_asked(given, record)]
    scaling = asked.scaling_asked(given, record)
    of_strategies = {one.name: asked.workload_asked(given, record, measured, one.name) for one in exchanges}
    workload, chosen = of_strategies[exchanges[0].name]
    workers, left_out = asked.workers_asked(given, workload, topology, scaling)
    predictions = [
        prediction
        for one in exchanges
        for prediction in predict(of_strategies[one.name][0], topology, one, workers, scaling, given.precision)
    ]

    _say(f"Simulated, not measured: {scaling} scaling.")
    for names, told in _alike({name: workload_told(one) for name, (one, _) in of_strategies.items()}).items():
        _say(f"one worker: {f'{names}: ' if names else ''}{told}", indent=12)
    _say(f"links:      {topology_told(topology)}", indent=12)
    print(f"\n{prediction_table(predictions)}")
    for line in filter(None, (chosen, left_out)):
        _say(line)
    comparisons = []
    if record is not None:
        workloads = functools.cache(functools.partial(asked.record_workloads, given, record, measured))
        comparisons = compare(record, workloads, topology, options)
        _show_comparison(comparisons)
    _say_conclusions(workload, predictions, _median_error(comparisons))
    if given.csv is not None:
        write_predictions(predictions, given.csv)
        print(f"written: {given.csv}")
    if given.picture is not None:
        write_picture(predictions, given.picture)
        print(f"written: {given.picture}")
    return 0


def _alike(told: Mapping[str, str]) -> dict[str, str]:
    """Return texts by the names that they are for; by an empty one if it is the same for all."""
    names: dict[str, list[str]] = {}
    for name, text in told.items():
        names.setdefault(text, []).append(name)
    return {", ".join(of) if len(names) > 1 else "": text for text, of in names.items()}


def _show_links(measured: MeasuredLinks) -> None:
    from itwinai.benchmark.simulate.table import link_table
    from itwinai.benchmark.simulate.words import link_told

    named = [(f"{fitted.workers} workers of a node", fitted) for fitted in measured.within]
    if measured.between is not None:
        named.append((f"{measured.between.workers} nodes of {measured.workers_per_node} workers", measured.between))
    for name, fitted in named:
        print(f"{name}, {measured.backend} on {measured.device}: {link_told(fitted.link)}")
        print(f"{link_table(fitted)}\n")
        _say(f"The fit is off by {fitted.median_error:.0%} as a median, and by {fitted.largest_error:.0%} at most.")
        print()
    _say(
        "Latency is that of one message, bandwidth what one worker sends while all do: a ring of N workers takes "
        "2 (N - 1) latency + 2 (N - 1) / N * bytes / bandwidth."
    )


def _say_conclusions(workload: Workload, predictions: Sequence[Prediction], error: float | None) -> None:
    from itwinai.benchmark.simulate.words import assumptions, conclusion

    print()
    if error is not None and error > USELESS:
        _say(
            f"-> The model does not describe what was measured ({error:.0%} off as a median), so that nothing follows "
            "from it. Were other programs running meanwhile, or were the links measured elsewhere? Parts of a step "
            "that more workers do not make shorter are named with --other and --optimizer.",
            indent=3,
        )
        return
    for name in dict.fromkeys(prediction.exchange.name for prediction in predictions):
        _say(f"-> {conclusion([one for one in predictions if one.exchange.name == name])}", indent=3)
    print("\nThis is a model, which assumes:")
    for assumption in assumptions(workload, predictions):
        _say(f"- {assumption}", indent=2)


def _median_error(comparisons: Sequence[Comparison]) -> float | None:
    """Return how far the model is off, as a median over the cells that were measured; None if none was."""
    from statistics import median

    errors = [abs(one.error) for one in comparisons if one.error is not None]
    return median(errors) if errors else None


def _show_comparison(comparisons: Sequence[Comparison]) -> None:
    from itwinai.benchmark.simulate.table import comparison_table

    print()
    if not comparisons:
        _say("The benchmark has measured no more than one worker, so it cannot be said how far the model is off.")
        return
    print(f"The same model beside what was measured:\n\n{comparison_table(comparisons)}")
    if (error := _median_error(comparisons)) is not None:
        largest = max(abs(one.error) for one in comparisons if one.error is not None)
        _say(f"The model is off by {error:.0%} as a median, and by {largest:.0%} at most.")


def _say(text: str, indent: int = 0) -> None:
    print(textwrap.fill(text, _WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False))
