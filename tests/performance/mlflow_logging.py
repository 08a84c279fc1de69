"""What it costs to log 10,000 metrics to an MLflow server: ``python -m tests.performance.mlflow_logging``.

Two figures for each logger: how long the caller waits in its calls, and when everything is on the server, which is
looked up afterwards. The server runs on this machine, and takes its share of the processor from both.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.loggers import MLFlowLogger as LightningMLFlowLogger

from itwinai.loggers.mlflow import MLFlowLogger
from tests.support.mlflow_server import Server

METRICS = 10_000
PATTERNS = {100: "100 calls with 100 keys", 1: "10,000 calls with 1 key"}
LOGGERS: dict[str, Callable[..., LightningMLFlowLogger]] = {"lightning": LightningMLFlowLogger, "itwinai": MLFlowLogger}


@dataclass(frozen=True)
class Sample:
    """One run.

    Attributes:
        waited: seconds that the caller spent in its calls.
        arrived: seconds from the first call until everything was on the server.
    """

    waited: float
    arrived: float


def measure(name: str, keys: int, address: str) -> Sample:
    """Log with one of the loggers, with so many keys in each call."""
    logger = LOGGERS[name](experiment_name="benchmark", tracking_uri=address)
    run_id = logger.run_id  # made before the clock starts
    began = time.perf_counter()
    for step in range(METRICS // keys):
        logger.log_metrics({f"metric_{key}": step / 7 for key in range(keys)}, step)
    waited = time.perf_counter() - began
    if isinstance(logger, MLFlowLogger):
        logger.flush()
    arrived = time.perf_counter() - began
    client = logger.experiment
    found = sum(len(client.get_metric_history(run_id, f"metric_{key}")) for key in range(keys))
    assert found == METRICS, f"{found} of {METRICS} metrics of {name} are on the server"
    logger.finalize()
    return Sample(waited, arrived)


def main() -> None:
    """Measure both loggers in turn, and print a table of the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; the medians are shown")
    repeats = parser.parse_args().repeats
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    samples: dict[tuple[int, str], list[Sample]] = {}
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        server.start()
        try:
            for repeat in range(repeats):
                for keys, pattern in PATTERNS.items():
                    for name in LOGGERS:
                        print(f"repeat {repeat + 1} of {repeats}: {pattern}, {name}", flush=True)
                        samples.setdefault((keys, name), []).append(measure(name, keys, server.address))
        finally:
            server.kill()
    print(f"\n{'10,000 metrics':<26}{'logger':<12}{'caller waits':>14}{'all arrived':>14}")
    for (keys, name), measured in samples.items():
        waited = statistics.median(sample.waited for sample in measured)
        arrived = statistics.median(sample.arrived for sample in measured)
        print(f"{PATTERNS[keys]:<26}{name:<12}{waited:>12.3f} s{arrived:>12.3f} s")


if __name__ == "__main__":
    main()
