"""Run the checks dry, and five of them broken on purpose, in one process that has imported what they need: ``OUT``."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

from tests.gpu import checkpoints, launching, numbers, speed, watching
from tests.gpu.__main__ import import_for_all, main
from tests.gpu.check import Bench, Check
from tests.gpu.models import Timed
from tests.gpu.registry import all_checks
from tests.gpu.runner import run_all
from tests.gpu.training import Trained


def wrong_reference(*given: object, **variant: object) -> Trained:
    """Return a run whose loss and weights are a little off."""
    right = numbers.fit_by_hand(*given, **variant)  # type: ignore[arg-type]
    return Trained([weight * 1.001 for weight in right.weights], right.loss * 1.001)


def no_training(bench: Bench, module: Timed, loader: object, precision: str) -> None:
    """Train nothing, in no time."""


def endless(bench: Bench) -> None:
    """Never end."""
    launching.time.sleep(600)


def broken() -> list[Check]:
    """Return checks that must not pass: with a wrong expectation, or with something that does not work."""
    by_name = {check.name: check for check in all_checks()}
    wrong = {
        "numbers": partial(numbers.single, reference=wrong_reference),
        "ddp-two": partial(numbers.ddp_two, tolerance=0.0),
        "worker-dies": partial(launching.worker_dies, wanted="SIGTERM"),
        "checkpoint-random": partial(checkpoints.random_numbers, dropout=0.0),
        "monitor": partial(watching.monitor, batches=1),
        "transformer": partial(speed.transformer, contenders={**speed.CONTENDERS, "itwinai": no_training}),
        "fork": endless,
    }
    return [replace(by_name[name], run=run, seconds=2.0 if run is endless else 60.0) for name, run in wrong.items()]


def rehearse(out: Path) -> None:
    """Leave in a folder the results of both, and the exit codes of the command: dry, and without a GPU."""
    codes = {"no GPU": main(["--out", str(out / "real")]), "dry": main(["--dry", "--out", str(out / "dry")])}
    import_for_all()
    outcomes = run_all(broken(), out / "broken", True, 300.0, lambda outcomes: None)
    wait = threading.Event()
    threading.Thread(target=wait.wait).start()  # with a thread, this process is no longer forked
    codes["not forked"] = main(["--dry", "--only", "tf32", "--out", str(out / "new")])
    wait.set()
    (out / "broken.json").write_text(json.dumps({outcome.name: outcome.status for outcome in outcomes}))
    (out / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    rehearse(Path(sys.argv[1]))
