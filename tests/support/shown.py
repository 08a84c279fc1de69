"""A search that is only told of, for a terminal to show: ``shown.py HOW``.

HOW is ``whole`` to the end, ``raise`` with an error in its midst, or ``wait`` in its midst until it is interrupted.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

from itwinai.trials.records import Objective, Report, SearchRecord, TrialRecord
from itwinai.tune.progress_display import SearchView

LOSS = Objective("val_loss", "min")
PATHS = ("model.init_args.lr", "model.init_args.channels", "data.init_args.batch_size")
TOTAL, AT_ONCE, REPORTS = 10, 4, 6
SECONDS = 12.0


def recorder() -> Iterator[SearchRecord]:
    """Yield a search from report to report: trial 1 fails twice, those after 6 are stopped in their midst."""
    trials: dict[int, TrialRecord] = {}
    seconds = 0.0
    while not trials or any(trial.status == "running" for trial in trials.values()) or len(trials) < TOTAL:
        yield record_of(trials, seconds)
        seconds += SECONDS
        for number, trial in trials.items():
            if trial.status == "running":
                trials[number] = _later(trial)
        while len(trials) < TOTAL and sum(trial.status == "running" for trial in trials.values()) < AT_ONCE:
            number = len(trials)
            values = (10.0 ** -(number + 1), 2**number, "large\x1b[31m batches of\nmany samples")
            trials[number] = TrialRecord(number, f"t{number}", dict(zip(PATHS, values, strict=True)), "running")
    yield record_of(trials, seconds)


def record_of(trials: dict[int, TrialRecord], seconds: float) -> SearchRecord:
    return SearchRecord("clouds", [LOSS], PATHS, tuple(trials.values()), seconds)


def _later(trial: TrialRecord) -> TrialRecord:
    number = len(trial.reports) + 1
    trial = replace(trial, seconds=trial.seconds + SECONDS)
    if trial.number == 1 and number > 2:
        failed = replace(trial, failures=trial.failures + 1, error="ValueError: \x1b[31mno\x1b[0m\r\nnumber")
        return failed if trial.failures == 0 else replace(failed, status="failed")
    # Gets better until the report before the last one; every later trial is better.
    value = 1 / number + (0.5 if number == REPORTS else 0) - trial.number / 100
    report = Report(number, trial.seconds, {LOSS.metric: value, "epoch": float(number)})
    trial = replace(trial, reports=(*trial.reports, report))
    if trial.number > 6 and number == 3:
        return replace(trial, status="stopped")
    return replace(trial, status="finished") if number == REPORTS else trial


def main(how: str) -> None:
    logging.basicConfig()  # to what standard error is before there is a table
    with SearchView(TOTAL, AT_ONCE, interval=0.0) as view:
        for step, record in enumerate(recorder()):
            view.show(record)
            time.sleep(0.05)  # so that more than the last one is drawn
            if step == 4:
                logging.error("logged by somebody else")
                print("printed by somebody else", flush=True)
                if how == "raise":
                    raise RuntimeError("in the midst")
                if how == "wait":
                    time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[1])
