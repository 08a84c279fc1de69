"""`TuneReportCallback`: what it reports and when, what it saves, and how it ends a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from itwinai import ItwinaiTrainer
from itwinai.callbacks import TuneReportCallback
from itwinai.errors import ConfigurationError, MissingMetricError
from itwinai.trials.current_session import in_trial
from itwinai.trials.session import Decision
from tests.support.answering import Answering, answering
from tests.support.tuned import BATCHES, Points, Regression


def fit(
    callback: TuneReportCallback, folder: Path, module: L.LightningModule | None = None, **flags: Any
) -> ItwinaiTrainer:
    """Train for three epochs with a callback."""
    L.seed_everything(1)
    trainer = ItwinaiTrainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 3,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": folder,
            "callbacks": [callback],
            **flags,
        }
    )
    trainer.fit(module or Regression(), Points(), ckpt_path=callback.resume_path)
    return trainer


def report(folder: Path, decisions: list[Decision], *args: Any, flags: dict[str, Any] | None = None, **options: Any):
    """Train in a trial; return what it has said, the callback and the trainer."""
    with answering(str(folder), decisions) as answered, in_trial(answered.session):
        callback = TuneReportCallback(*args, **options)
        trainer = fit(callback, folder, **(flags or {}))
    return answered, callback, trainer


def test_reports_what_is_current_at_the_end_of_each_epoch(tmp_path: Path) -> None:
    answered, _, trainer = report(tmp_path, [], ["val_loss", "late"])
    assert [sorted(values) for values in answered.reports] == [["epoch", "late", "step", "val_loss"]] * 3
    # Logged in the module's on_train_epoch_end, which comes after the validation.
    assert [values["late"] for values in answered.reports] == [0, 1, 2]
    assert [values["step"] for values in answered.reports] == [BATCHES, 2 * BATCHES, 3 * BATCHES]
    assert [message["number"] for message in answered.messages] == [1, 2, 3]
    assert answered.reports[-1]["val_loss"] == pytest.approx(float(trainer.callback_metrics["val_loss"]))


def test_reports_each_validation_within_an_epoch(tmp_path: Path) -> None:
    answered, _, _ = report(tmp_path, [], "val_loss", flags={"val_check_interval": 2, "max_epochs": 2})
    assert [values["step"] for values in answered.reports] == [2, 4, 6, 8]


def test_reports_by_epoch_and_by_steps_and_under_other_names(tmp_path: Path) -> None:
    by_epoch, _, _ = report(tmp_path / "a", [], {"loss": "train_loss"}, on="epoch", flags={"limit_val_batches": 0})
    assert [sorted(values) for values in by_epoch.reports] == [["epoch", "loss", "step"]] * 3
    by_steps, _, _ = report(tmp_path / "b", [], "train_loss_step", on="3 steps")
    assert [values["step"] for values in by_steps.reports] == [3, 6, 9, 12]


def test_reports_everything_unless_metrics_are_named(tmp_path: Path) -> None:
    answered, _, _ = report(tmp_path, [])
    assert {"val_loss", "train_loss", "train_loss_step", "train_loss_epoch", "late", "lr"} <= set(answered.reports[0])
    both, _, _ = report(tmp_path, [], "val_loss", everything=True)
    assert set(both.reports[0]) == set(answered.reports[0])


def test_does_not_report_the_sanity_check_nor_a_validation_of_its_own(tmp_path: Path) -> None:
    with answering(str(tmp_path)) as answered, in_trial(answered.session):
        trainer = fit(TuneReportCallback("val_loss"), tmp_path, num_sanity_val_steps=2)
        trainer.validate(trainer.lightning_module, Points(), verbose=False)
    assert len(answered.reports) == 3


def test_a_metric_that_is_not_logged_is_an_error_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(MissingMetricError, match=r"'val_los',.* mean 'val_loss'\?.*late, lr, origin, train_loss"):
        report(tmp_path, [], "val_los")


@pytest.mark.parametrize("decision", [2, 5])
def test_stops_when_the_search_says_so(tmp_path: Path, decision: int) -> None:
    decisions = [Decision.CONTINUE] * (decision - 1) + [Decision.STOP]
    flags = {"val_check_interval": 2, "min_epochs": 3}
    answered, _, trainer = report(tmp_path, decisions, "val_loss", flags=flags)
    assert len(answered.reports) == decision
    assert trainer.global_step == 2 * decision


def test_saves_by_reference_and_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    flags = {"max_epochs": 5}
    options = {"checkpoint_every": 1, "keep": 2, "mode": "max", "flags": flags}  # the first is the best: it falls
    answered, _, _ = report(tmp_path, [], "val_loss", **options)
    values = [values["val_loss"] for values in answered.reports]
    assert values == sorted(values, reverse=True)
    saved = [Path(message["checkpoint"]).name for message in answered.messages]
    assert saved == [f"report-{number:05d}.ckpt" for number in range(1, 6)]
    assert {Path(message["best"]).name for message in answered.messages} == {"report-00001.ckpt"}
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["report-00001.ckpt", "report-00004.ckpt", "report-00005.ckpt"]


def test_saves_only_what_is_better_and_every_so_often(tmp_path: Path) -> None:
    better, _, _ = report(tmp_path / "a", [], "val_loss", checkpoint_every=1, best_only=True, mode="max")
    assert [bool(message["checkpoint"]) for message in better.messages] == [True, False, False]
    seldom, _, _ = report(tmp_path / "b", [], "val_loss", checkpoint_every=2)
    assert [bool(message["checkpoint"]) for message in seldom.messages] == [False, True, False]


def test_saves_when_it_is_asked_to(tmp_path: Path) -> None:
    answered, _, _ = report(tmp_path, [Decision.CONTINUE, Decision.SAVE], "val_loss")
    saved = [message["saved"] for message in answered.messages if "saved" in message]
    assert [Path(path).name for path in saved] == ["report-00002.ckpt"]
    # When all hooks at the end of the second epoch are done.
    assert torch.load(saved[0], weights_only=True)["epoch"] == 2


def test_goes_on_from_a_checkpoint_to_the_same_result(tmp_path: Path) -> None:
    whole, _, straight = report(tmp_path / "a", [], "val_loss", checkpoint_every=1)
    stopped, _, _ = report(tmp_path / "b", [Decision.CONTINUE, Decision.STOP], "val_loss", checkpoint_every=1)
    path = stopped.messages[-1]["checkpoint"]
    with answering(str(tmp_path / "b"), resume_path=path) as answered, in_trial(answered.session):
        trainer = fit(TuneReportCallback("val_loss", checkpoint_every=1), tmp_path)
    assert [message["number"] for message in answered.messages] == [3]
    assert answered.reports[0]["val_loss"] == whole.reports[2]["val_loss"]
    for name, weights in straight.lightning_module.state_dict().items():
        assert torch.equal(weights, trainer.lightning_module.state_dict()[name])


def test_a_trial_that_was_over_tells_its_last_report_again(tmp_path: Path) -> None:
    whole, _, _ = report(tmp_path, [], "val_loss", checkpoint_every=1)
    path = whole.messages[-1]["checkpoint"]
    with answering(str(tmp_path), resume_path=path) as answered, in_trial(answered.session):
        fit(TuneReportCallback("val_loss", checkpoint_every=1), tmp_path)
    assert answered.messages == [{**whole.messages[-1], "again": True}]


def test_the_optimizer_uses_the_hyperparameters_of_this_trial_in_the_state_of_another(tmp_path: Path) -> None:
    other, _, _ = report(
        tmp_path / "other", [Decision.CONTINUE, Decision.STOP], "val_loss", checkpoint_every=1,
        flags={"module": Regression(lr=0.04, momentum=0.5)},
    )  # fmt: skip
    path = other.messages[-1]["checkpoint"]
    with answering(str(tmp_path / "own"), resume_path=path) as answered, in_trial(answered.session):
        callback = TuneReportCallback("lr", checkpoint_every=1)
        trainer = fit(callback, tmp_path, Regression(lr=0.08, momentum=0.9), max_epochs=4)
    group = trainer.optimizers[0].param_groups[0]
    # Two of the four epochs were the other's; its schedule goes on, from twice its rate. What is logged at the end of
    # an epoch is the rate of the next one.
    assert [values["lr"] for values in answered.reports] == pytest.approx([0.08 * 0.5**3, 0.08 * 0.5**4])
    assert (group["initial_lr"], group["momentum"]) == (0.08, 0.9)
    assert math.isclose(group["lr"], 0.08 * 0.5**4)
    assert trainer.lr_scheduler_configs[0].scheduler.base_lrs == [0.08]
    # And the checkpoints of the other trial are not removed.
    assert Path(path).exists()


def test_outside_of_trials_it_does_nothing(tmp_path: Path) -> None:
    callback = TuneReportCallback("nothing_of_this_name", checkpoint_every=1)
    trainer = fit(callback, tmp_path)
    assert trainer.global_step == 3 * BATCHES
    assert callback.resume_path is None
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed", "horovod"])
def test_two_workers_report_once_and_stop_together(tmp_path: Path, strategy: str) -> None:
    decisions = [Decision.SAVE, Decision.CONTINUE, Decision.STOP]
    flags = {"devices": 2, "strategy": strategy, "split_batches": True, "max_epochs": 5}
    answered, callback, trainer = report(tmp_path, decisions, "val_loss", flags=flags)
    assert [("saved" in message) for message in answered.messages] == [False, True, False]
    assert Path(answered.messages[1]["saved"]).exists()
    assert trainer.global_step == 2 * BATCHES
    single, _, _ = report(tmp_path / "single", decisions, "val_loss")
    values = [[one["val_loss"] for one in run.reports] for run in (answered, single)]
    assert values[0] == pytest.approx(values[1], rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on": "validaton"}, "Did you mean 'validation'"),
        ({"on": "0steps"}, "not a moment to report at"),
        ({"mode": "low"}, "choose 'min' or 'max'"),
        ({"best_only": True}, "name the metrics"),
        ({"checkpoint_every": -1}, "at least 0"),
        ({"keep": 0}, "at least 1"),
    ],
)
def test_invalid_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TuneReportCallback(**arguments)


def test_a_session_says_what_it_is(tmp_path: Path) -> None:
    with answering(str(tmp_path), resume_path="there.ckpt") as answered, in_trial(answered.session):
        assert isinstance(answered, Answering)
        assert TuneReportCallback().resume_path == "there.ckpt"
