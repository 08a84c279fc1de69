"""What a search costs beside its training: ``python -m tests.performance.searches``.

32 short trials, each about a second of training under stock lightning, at most two at a time, from the start of the
command to its end; and what one report costs, with and without a checkpoint. The other contender is plain Ray Tune with
stock lightning and Ray's own ``TuneReportCheckpointCallback``, as Ray's documentation has it. Both train the same model
for the same number of steps, and take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TRIALS, AT_ONCE = 32, 2
EPOCHS, BATCHES = 5, 200
REPORTS = 100
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def run_trials_of_ray(folder: str) -> None:
    """Search with plain Ray Tune."""
    from ray import tune

    tuner = tune.Tuner(
        tune.with_resources(_train_with_lightning, {"cpu": 1}),
        param_space={"lr": tune.loguniform(1e-4, 1e-1)},
        tune_config=tune.TuneConfig(metric="val_loss", mode="min", num_samples=TRIALS, max_concurrent_trials=AT_ONCE),
        run_config=tune.RunConfig(name="search", storage_path=folder),
    )
    results = tuner.fit()
    assert len(results) == TRIALS and not results.errors


def _train_with_lightning(parameters: dict[str, Any]) -> None:
    import lightning as L
    from ray.tune.integration.pytorch_lightning import TuneReportCheckpointCallback

    from tests.performance.searched import Batches, Regression

    report = TuneReportCheckpointCallback(["val_loss"], on="validation_end")
    trainer = L.Trainer(**QUIET, max_epochs=EPOCHS, enable_checkpointing=False, callbacks=[report])
    trainer.fit(Regression(lr=parameters["lr"]), Batches(BATCHES))


def run_trials_of_itwinai(folder: str) -> None:
    """Search as `itwinai tune` does."""
    from itwinai.cli.main import main

    config = Path(folder, "config.json")
    trainer = {"accelerator": "cpu", "max_epochs": EPOCHS, "logger": False}
    model = {"class_path": "tests.performance.searched.Regression"}
    data = {"class_path": "tests.performance.searched.Batches", "init_args": {"length": BATCHES}}
    tune = {
        "metric": "val_loss",
        "num_samples": TRIALS,
        "max_concurrent": AT_ONCE,
        "storage": folder,
        "space": {"model.lr": {"loguniform": [1e-4, 1e-1]}},
    }
    config.write_text(json.dumps({"trainer": trainer, "model": model, "data": data, "tune": tune}))
    assert main(["tune", "-c", str(config)]) == 0


def run_reports_of_ray(folder: str) -> None:
    """Time reports through plain Ray Tune."""
    from ray import tune

    tune.run(_time_reports_of_ray, storage_path=folder, name="reports", config={"folder": folder}, verbose=0)


def _time_reports_of_ray(config: dict[str, Any]) -> None:
    import lightning as L
    from ray.tune.integration.pytorch_lightning import TuneReportCheckpointCallback

    flags = {"enable_checkpointing": False}
    callbacks = {
        "none": [],
        "report": [TuneReportCheckpointCallback(["val_loss"], save_checkpoints=False, on="validation_end")],
        "checkpoint": [TuneReportCheckpointCallback(["val_loss"], on="validation_end")],
    }
    _write_times(config["folder"], {name: _time(L.Trainer, one, **flags) for name, one in callbacks.items()})


def run_reports_of_itwinai(folder: str) -> None:
    """Time reports through `itwinai.tune`."""
    from itwinai.tune import Tuner

    def train(parameters: dict[str, Any]) -> None:
        from itwinai import ItwinaiTrainer
        from itwinai.callbacks import TuneReportCallback

        callbacks = {
            "none": [],
            "report": [TuneReportCallback("val_loss")],
            "checkpoint": [TuneReportCallback("val_loss", checkpoint_every=1)],
        }
        times = {}
        for name, one in callbacks.items():
            times[name] = _time(ItwinaiTrainer, one, **({} if one else {"enable_checkpointing": False}))
        _write_times(folder, times)

    Tuner(train, {"x": {"choice": [1]}}, metric="val_loss", num_samples=1, storage=folder, quiet=True).fit()


def _time(trainer_class: Any, callbacks: list[Any], **flags: Any) -> float:
    """Return the seconds of a fit that reports so often, and does little else."""
    from tests.performance.searched import Batches, Regression

    trainer = trainer_class(**QUIET, max_epochs=REPORTS, callbacks=callbacks, **flags)
    began = time.perf_counter()
    trainer.fit(Regression(), Batches(1))
    return time.perf_counter() - began


def _write_times(folder: str, times: dict[str, float]) -> None:
    Path(folder, "times.json").write_text(json.dumps(times))


CONTENDERS = {
    "trials": {"Ray Tune + lightning": run_trials_of_ray, "itwinai": run_trials_of_itwinai},
    "reports": {"Ray Tune + lightning": run_reports_of_ray, "itwinai": run_reports_of_itwinai},
}


def measure(kind: str, name: str) -> dict[str, float]:
    """Run a contender in a process of its own, and return what it took.

    Returns:
        ``seconds`` from its start to its end, and what it has measured itself.
    """
    with tempfile.TemporaryDirectory(prefix="itwinai-bench-", ignore_cleanup_errors=True) as folder:
        began = time.perf_counter()
        command = [sys.executable, "-m", "tests.performance.searches", "--run", kind, name, folder]
        finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        seconds = time.perf_counter() - began
        if finished.returncode:
            raise RuntimeError(f"{name} failed:\n{finished.stdout}")
        times = Path(folder, "times.json")
        return {"seconds": seconds, **(json.loads(times.read_text()) if times.exists() else {})}


def table(samples: dict[tuple[str, str], list[dict[str, float]]]) -> str:
    """Return what was measured, as Markdown."""

    def median(kind: str, name: str, key: str) -> float:
        return statistics.median(sample[key] for sample in samples[kind, name])

    names = list(CONTENDERS["trials"])
    base = median("trials", names[0], "seconds")
    lines = [
        f"| {TRIALS} trials, {AT_ONCE} at a time | seconds | repeats | of Ray Tune's |",
        "| --- | --- | --- | --- |",
    ]
    for name in names:
        whole = median("trials", name, "seconds")
        repeats = ", ".join(f"{sample['seconds']:.1f}" for sample in samples["trials", name])
        lines.append(f"| {name} | {whole:.1f} | {repeats} | {whole / base:.2f} |")
    lines += ["", "| one report | ms | with a checkpoint |", "| --- | --- | --- |"]
    for name in names:
        none, *others = (median("reports", name, key) for key in ("none", "report", "checkpoint"))
        per_report = [f"{(seconds - none) / REPORTS * 1e3:.1f}" for seconds in others]
        lines.append(f"| {name} | {' | '.join(per_report)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.performance.searches")
    parser.add_argument("--repeats", type=int, default=3, help="times that each is run, by turns (%(default)s)")
    parser.add_argument("--run", nargs=3, metavar=("KIND", "NAME", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        kind, name, folder = given.run
        CONTENDERS[kind][name](folder)
        return
    samples: dict[tuple[str, str], list[dict[str, float]]] = {}
    for repeat in range(given.repeats):
        for kind, contenders in CONTENDERS.items():
            for name in contenders:
                print(f"searches: repeat {repeat + 1} of {given.repeats}, {kind} of {name}", flush=True)
                samples.setdefault((kind, name), []).append(measure(kind, name))
    print(table(samples))


if __name__ == "__main__":
    main()
