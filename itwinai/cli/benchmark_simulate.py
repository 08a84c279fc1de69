"""`itwinai benchmark links` and `itwinai benchmark simulate`: speed of the links, and scaling predicted from it."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from itwinai.cli.arguments import ArgumentParser

if TYPE_CHECKING:
    from itwinai.benchmark.simulate import Prediction, Workload
    from itwinai.benchmark.simulate.calibration import PredictedCell
    from itwinai.benchmark.simulate.measured_links import MeasuredLinks

_WIDTH = 100

USELESS = 0.5
"""Median error of a model from which nothing follows."""

_EPILOG = """
examples:
  itwinai benchmark links --workers 2,4 -o links.json
  itwinai benchmark simulate --from benchmarks/resnet --links links.json --workers 1,2,...,64 \\
      --node-latency 5us --node-bandwidth 25GB/s
  itwinai benchmark simulate --compute 120ms --gradients 100MB --parameters 25M --batch 4096 --workers-per-node 4 \\
      --latency 5us --bandwidth 200GB/s --node-latency 10us --node-bandwidth 25GB/s --strategies ddp,zero1,zero3
"""


def links(argv: list[str]) -> int:
    """Measure the links between workers, and print them.

    Args:
        argv: the arguments after ``links``.

    Raises:
        ConfigurationError: the links cannot be measured here.
        WorkerError: a worker failed.
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

    from itwinai.benchmark.simulate.measured_links import write_links
    from itwinai.benchmark.simulate.network_benchmark import measure_links
    from itwinai.benchmark.simulate.units import numbers_of_workers

    measured = measure_links(None if given.workers is None else numbers_of_workers(given.workers), given.backend)
    if measured is None:  # rank 0 prints
        return 0
    _print_links(measured)
    if given.output is not None:
        write_links(measured, given.output)
        print(f"\nwritten: {given.output}")
    return 0


def simulate(argv: list[str]) -> int:
    """Predict steps with more workers, and print them.

    Args:
        argv: the arguments after ``simulate``.

    Raises:
        ConfigurationError: an option is missing or wrong.
    """
    from itwinai.benchmark.simulate.options import SimulationOptions

    parser = ArgumentParser(
        prog="itwinai benchmark simulate",
        usage="itwinai benchmark simulate (--from FOLDER | --compute TIME --gradients SIZE ...)\n"
        "                                  (--links FILE | --latency TIME --bandwidth RATE ...) ...",
        description="Predict the time of a step on up to thousands of workers, from the time of one worker and the "
        "speed of the links. It is a model, and says what it assumes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    SimulationOptions.add_to(parser)
    options = SimulationOptions(**vars(parser.parse_args(argv)))

    from itwinai.benchmark.simulate import simulate as predict
    from itwinai.benchmark.simulate.calibration import predict_cells
    from itwinai.benchmark.simulate.explain import prediction_table, topology_text, workload_text, write_predictions
    from itwinai.benchmark.simulate.plot import plot_predictions

    topology, models, scaling = options.topology(), options.models(), options.chosen_scaling()
    workloads = {model.name: options.workload(model.name) for model in models}
    workload, chosen = workloads[models[0].name]
    workers, left_out = options.worker_counts(workload, topology, scaling)
    predictions = [
        prediction
        for model in models
        for prediction in predict(workloads[model.name][0], topology, model, workers, scaling, options.precision)
    ]

    _print(f"Simulated, not measured: {scaling} scaling.")
    for names, text in _by_text({name: workload_text(one) for name, (one, _) in workloads.items()}).items():
        _print(f"one worker: {f'{names}: ' if names else ''}{text}", indent=12)
    _print(f"links:      {topology_text(topology)}", indent=12)
    print(f"\n{prediction_table(predictions)}")
    for line in filter(None, (chosen, left_out)):
        _print(line)
    cells: list[PredictedCell] = []
    if options.record is not None:
        cells = predict_cells(options.record, options.recorded_workloads, topology, options.exchange())
        _print_measured(cells)
    _print_conclusions(workload, predictions, [abs(one.error) for one in cells if one.error is not None])
    if options.csv is not None:
        write_predictions(predictions, options.csv)
        print(f"written: {options.csv}")
    if options.picture is not None:
        plot_predictions(predictions, options.picture)
        print(f"written: {options.picture}")
    return 0


def _by_text(texts: Mapping[str, str]) -> dict[str, str]:
    """Return texts by the names they belong to; by an empty name if all have the same."""
    names: dict[str, list[str]] = {}
    for name, text in texts.items():
        names.setdefault(text, []).append(name)
    return {", ".join(of) if len(names) > 1 else "": text for text, of in names.items()}


def _print_links(measured: MeasuredLinks) -> None:
    from itwinai.benchmark.simulate.explain import link_table, link_text

    named = [(f"{fitted.workers} workers of a node", fitted) for fitted in measured.within]
    if measured.between is not None:
        named.append((f"{measured.between.workers} nodes of {measured.workers_per_node} workers", measured.between))
    for name, fitted in named:
        print(f"{name}, {measured.backend} on {measured.device}: {link_text(fitted.link)}")
        print(f"{link_table(fitted)}\n")
        _print(f"Error of the fit: {_errors_text(fitted.errors)}.")
        print()
    _print(
        "Latency is that of one message, bandwidth what one worker sends while all do: a ring of N workers takes "
        "2 (N - 1) latency + 2 (N - 1) / N * bytes / bandwidth."
    )


def _print_conclusions(workload: Workload, predictions: Sequence[Prediction], errors: Sequence[float]) -> None:
    from itwinai.benchmark.simulate.explain import assumptions, conclusion

    print()
    if errors and median(errors) > USELESS:
        _print(
            f"-> The model does not fit the measurements (median error {median(errors):.0%}), so nothing follows from "
            "it. Were other programs running, or were the links measured elsewhere? Give the parts of a step that more "
            "workers do not shorten with --other and --optimizer.",
            indent=3,
        )
        return
    for name in dict.fromkeys(prediction.model.name for prediction in predictions):
        _print(f"-> {conclusion([one for one in predictions if one.model.name == name])}", indent=3)
    print("\nThis is a model, which assumes:")
    for assumption in assumptions(workload, predictions):
        _print(f"- {assumption}", indent=2)


def _print_measured(cells: Sequence[PredictedCell]) -> None:
    from itwinai.benchmark.simulate.explain import measured_table

    print()
    if not cells:
        _print("The benchmark measured one worker only, so the error of the model is unknown.")
        return
    print(f"Predicted and measured:\n\n{measured_table(cells)}")
    if errors := [one.error for one in cells if one.error is not None]:
        _print(f"Error of the model: {_errors_text(errors)}.")


def _errors_text(errors: Sequence[float]) -> str:
    sizes = [abs(error) for error in errors]
    return f"median {median(sizes):.0%}, largest {max(sizes):.0%}"


def _print(text: str, indent: int = 0) -> None:
    print(textwrap.fill(text, _WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False))
