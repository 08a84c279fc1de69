"""What the lean loops do with several workers."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import threading
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from itwinai.callbacks import TimedProgressBar
from itwinai.compat import lightning_signals
from itwinai.errors import LoggedKeysError
from itwinai.loops import desync_detection
from itwinai.loops.coordinated_stop import StopAgreement
from itwinai.loops.store_monitor import StoreMonitor
from tests.conftest import RunCommand, assert_no_process_left, python, start_script, wait_for_files
from tests.loops import scenarios as drawn
from tests.loops.scenarios import Log, Scenario, scenarios
from tests.loops.test_exactness import some
from tests.support.cases import Regression, loader, make_trainer

FOCUSES = (drawn.HOOKS, drawn.LOGGING, drawn.OPTIMIZING, drawn.ENDING, drawn.FLAGS)


def draw_scenarios(focus: str, examples: int) -> list[Scenario]:
    """Draw scenarios that several ranks go through side by side."""
    collected: list[Scenario] = []

    @some(examples)
    @given(scenario=scenarios(focus))
    def collect(scenario: Scenario) -> None:
        collected.append(for_several_ranks(scenario))

    collect()
    return collected


def for_several_ranks(scenario: Scenario) -> Scenario:
    """Take out of a scenario what is another thing with several ranks, and has tests of its own."""
    return replace(
        scenario,
        strategy=(),
        # An error there, in words of our own.
        returns="tensor" if scenario.returns in ("some none", "none", "nothing") else scenario.returns,
        actions=tuple(action for action in scenario.actions if action.what not in ("terminate", "interrupt")),
        # The mean of integers over workers is a floating-point number here, and cut off in lightning.
        logs=tuple(
            monitored_together(replace(log, value="float") if log.value in ("int", "bool", "long") else log)
            for log in scenario.logs
        ),
        # Only rank 0 has checkpoints.
        after="nothing" if scenario.after == "resume" else scenario.after,
    )


def monitored_together(log: Log) -> Log:
    """Return a log whose value is the same on all ranks if it is monitored: otherwise that is an error here."""
    if log.name != "watched" or "sync_dist" in dict(log.options):
        return log
    return replace(log, options=(*log.options, ("sync_dist", True)))


def test_two_ranks_are_as_under_lightning(run_command: RunCommand, tmp_path: Path) -> None:
    """Everything that a rank can see is what it sees under lightning's trainer, with lightning's own DDP in both."""
    all_scenarios = [scenario for focus in FOCUSES for scenario in draw_scenarios(focus, 12)]
    (tmp_path / "scenarios.pickle").write_bytes(pickle.dumps(all_scenarios))
    script = ["tests/loops/joined.py", str(tmp_path)]
    ended = run_command(python("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *script))
    assert ended.code == 0, ended.output
    for rank in range(2):
        found = pickle.loads((tmp_path / f"found-{rank}.pickle").read_bytes())
        for index, text in found[:1]:
            pytest.fail(f"rank {rank}, lightning against itwinai: {text}\n{all_scenarios[index]}", pytrace=False)


# ------------------------------------------------------------------------------------------------ logged values


def counting(counted: dict[str, int], name: str, call: Any) -> Any:
    """Return a call that is counted."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        counted[name] += 1
        return call(*args, **kwargs)

    return wrapper


class Logs(Regression):
    """Logs values that differ between ranks, under all reductions, and counts what workers exchange for them."""

    def __init__(self) -> None:
        super().__init__()
        self.exchanges: list[int] = []
        self.seen: list[dict[str, float]] = []

    def on_fit_start(self) -> None:
        strategy = self.trainer.strategy
        self.counted = dict.fromkeys(("gather_alike", "all_gather", "reduce", "broadcast", "barrier"), 0)
        for name in self.counted:
            vars(strategy)[name] = counting(self.counted, name, getattr(strategy, name))

    def on_fit_end(self) -> None:
        for name in self.counted:
            del vars(self.trainer.strategy)[name]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        number = torch.tensor(1.0 + 2 * self.global_rank + batch_idx)
        for operation in ("mean", "sum", "max", "min"):
            self.log(
                f"step_{operation}",
                number,
                on_step=True,
                on_epoch=True,
                sync_dist=True,
                reduce_fx=operation,
                batch_size=4,
            )
        self.log("integers", self.global_rank, on_step=True, sync_dist=True, batch_size=4)
        self.log("unsynced", number, on_step=True, batch_size=4)
        return torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append({name: float(value) for name, value in self.trainer.callback_metrics.items()})

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        # The ranks' batches weigh differently, so that a mean of means would not do.
        for index in range(20):
            self.log(
                f"val_{index}", 1.0 * index + self.global_rank, sync_dist=True, batch_size=1 + 2 * self.global_rank
            )

    def on_validation_epoch_start(self) -> None:
        self.before = sum(self.counted.values())

    def on_validation_end(self) -> None:
        self.exchanges.append(sum(self.counted.values()) - self.before)


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_2", "horovod"])
def test_logged_values_travel_together(strategy: str) -> None:
    module = Logs()
    trainer = make_trainer(strategy, 2, max_epochs=2, limit_train_batches=3, num_sanity_val_steps=0)
    trainer.fit(module, loader(4), loader(4))
    assert module.exchanges == [1, 1]  # 20 keys, one exchange
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for index in range(20):
        assert metrics[f"val_{index}"] == pytest.approx(index + 0.75)  # weights 1 and 3
    # Rank 0 logs 1, 2, 3, rank 1 logs 3, 4, 5.
    expected = {"mean": (4.0, 3.0), "sum": (8.0, 18.0), "max": (5.0, 5.0), "min": (3.0, 1.0)}
    for operation, (step, epoch) in expected.items():
        assert metrics[f"step_{operation}_step"] == step
        assert metrics[f"step_{operation}_epoch"] == epoch
    assert metrics["integers"] == 0.5
    assert metrics["unsynced"] == 3.0  # rank 0's
    # What a hook reads during the epoch is reduced as well: the step's value of all ranks.
    assert [seen["step_sum_step"] for seen in module.seen if "step_sum_step" in seen][:3] == [4.0, 6.0, 8.0]


class OtherKeys(Regression):
    """Logs on one rank what the other does not log."""

    def __init__(self, hook: str) -> None:
        super().__init__()
        self.hook = hook

    def setup(self, stage: str) -> None:
        desync_detection.PATIENCE = desync_detection.CERTAINTY = 0.5

    def extra(self, hook: str, **options: Any) -> None:
        if self.hook == hook and self.global_rank == 1:
            self.log("only_here", 1.0, sync_dist=True, **options)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.extra("step", on_step=True, on_epoch=False)
        self.extra("epoch", on_step=False, on_epoch=True)
        if batch_idx == 1:
            self.extra("one step", on_step=True, on_epoch=False)
        return super().training_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self.extra("validation end")


TOGETHER = r"rank 0: none of these\n +rank 1: .*only_here"
ALONE = r"rank 1 logs .*only_here.* but rank 0 continued without"


@pytest.mark.parametrize(
    ("strategy", "hook", "message"),
    [
        ("ddp", "step", ALONE),
        ("ddp", "epoch", TOGETHER),
        ("ddp", "one step", ALONE),
        ("ddp", "validation end", TOGETHER),
        ("horovod", "epoch", TOGETHER),
        ("horovod", "one step", ALONE),
        ("ray", "one step", ALONE),
    ],
)
def test_ranks_that_log_different_keys(
    strategy: str, hook: str, message: str, no_leftovers: None, request: pytest.FixtureRequest
) -> None:
    if strategy == "ray":
        request.getfixturevalue("local_ray")
    trainer = make_trainer(strategy, 2, max_epochs=2, num_sanity_val_steps=0, val_check_interval=4)
    with pytest.raises(LoggedKeysError, match=message):
        trainer.fit(OtherKeys(hook), loader(4), loader(4))


# ------------------------------------------------------------------------------------------------------ stopping


@pytest.mark.parametrize(
    ("strategy", "receiver"),
    [
        *itertools.product(["ddp", "deepspeed_stage_2", "horovod", "ray"], ["one rank", "the caller"]),
    ],
)
def test_sigterm_stops_all_ranks_at_the_same_step(strategy: str, receiver: str, tmp_path: Path) -> None:
    process = start_script(["tests/support/stopped.py", strategy, str(tmp_path)], tmp_path / "output")
    wait_for_files(process, [tmp_path / "0.pid", tmp_path / "1.pid"], tmp_path / "output")
    os.kill(int((tmp_path / "1.pid").read_text()) if receiver == "one rank" else process.pid, signal.SIGTERM)
    code = process.wait(timeout=60)
    output = (tmp_path / "output").read_text()
    assert code == 128 + signal.SIGTERM, output
    assert "not reached" not in output
    ends = [(tmp_path / f"{rank}.end").read_text() for rank in range(2)]
    assert ends[0] == ends[1]
    name, global_step, ready, completed = ends[0].split()
    assert name == "SIGTERMException"
    assert int(global_step) == int(ready) == int(completed) >= 30  # between two batches
    assert_no_process_left(process.pid)


class StoppedByAnother(Callback):
    """Knows that the run is to stop before the signal has come to this process."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        lightning_signals.signal_connector(trainer).received_sigterm = trainer.global_step == 3


@pytest.mark.parametrize(("is_worker", "stopped"), [(True, True), (True, False), (False, True)])
def test_signal_that_comes_after_the_end(is_worker: bool, stopped: bool) -> None:
    """It does not kill a worker that it has stopped already, by way of another one."""
    before = signal.getsignal(signal.SIGTERM)
    trainer = make_trainer("auto", 1, max_epochs=1, callbacks=[StoppedByAnother()] if stopped else [])
    if is_worker:
        lightning_signals.expect_late_signals(trainer)
    try:
        with pytest.raises(SIGTERMException) if stopped else nullcontext():
            trainer.fit(Regression(), loader(4))
        after = signal.getsignal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert after == (signal.SIG_IGN if is_worker and stopped else before)


class Ranks:
    """Ranks that step side by side in threads, as processes do."""

    def __init__(self, number: int) -> None:
        self.positions = [0] * number
        store = dist.HashStore()
        self.agreements = [
            StopAgreement(store, rank, number, partial(self.positions.__getitem__, rank)) for rank in range(number)
        ]
        self.watches = [
            StoreMonitor(store, rank, number, [agreement]) for rank, agreement in enumerate(self.agreements)
        ]
        self.stopped: dict[int, int] = {}

    def train(self, rank: int, in_step: threading.Barrier, asks_at: int | None) -> None:
        """Take steps, which all ranks end together, until it is time to stop."""
        agreement = self.agreements[rank]
        while not (agreement.held_back and agreement.stops_here()):
            self.positions[rank] += 1
            if self.positions[rank] == asks_at:
                agreement.ask()
                self.watches[rank].hurry()
            in_step.wait(30)
        self.stopped[rank] = self.positions[rank]


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(asks=st.lists(st.one_of(st.none(), st.integers(1, 50)), min_size=2, max_size=4).filter(any))
def test_ranks_agree_whoever_asks(asks: list[int | None]) -> None:
    """One rank that is a step ahead of another is still within a step that the others have to join."""
    ranks = Ranks(len(asks))
    in_step = threading.Barrier(len(asks))
    threads = [
        threading.Thread(target=ranks.train, args=(rank, in_step, ask), daemon=True) for rank, ask in enumerate(asks)
    ]
    for watch in ranks.watches:
        watch.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for watch in ranks.watches:
        watch.end()
    assert len(ranks.stopped) == len(asks)  # nobody waits for somebody who has stopped
    assert len(set(ranks.stopped.values())) == 1
    assert ranks.stopped[0] >= min(ask for ask in asks if ask)


# ------------------------------------------------------------------------------------- what only rank 0 has


class Busy(Regression):
    """Logs in many hooks, for each of which a progress bar reads on rank 0 what the other rank reads later."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("in_step", float(self.global_rank), on_step=True, on_epoch=True, sync_dist=True, prog_bar=True)
        return loss

    def on_train_batch_end(self, *args: Any) -> None:
        self.log("at_batch_end", float(self.global_rank), on_step=True, sync_dist=True, prog_bar=True)

    def on_train_epoch_end(self) -> None:
        self.log("at_epoch_end", float(self.global_rank), sync_dist=True, prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        self.log("at_validation_end", float(self.global_rank), sync_dist=True, prog_bar=True)


class LogsToo(Callback):
    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        self.log("callback_batch", float(trainer.global_rank), on_step=True, sync_dist=True, prog_bar=True)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.log("callback_epoch", float(trainer.global_rank), sync_dist=True, prog_bar=True)


@pytest.mark.parametrize(
    "bar", [TQDMProgressBar(), TimedProgressBar(interval=0, everywhere=True)], ids=["tqdm", "ours"]
)
@pytest.mark.parametrize("strategy", ["ddp", "horovod"])
def test_progress_bar_that_reads_on_rank_0_only(strategy: str, bar: Any) -> None:
    trainer = make_trainer(strategy, 2, max_epochs=2, callbacks=[LogsToo(), bar], enable_progress_bar=True)
    trainer.fit(Busy(), loader(4), loader(4))
    logged = {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if "loss" not in name and "val_" not in name
    }
    names = {"in_step", "in_step_step", "in_step_epoch", "at_batch_end", "at_epoch_end", "at_validation_end"}
    expected = dict.fromkeys(names | {"callback_batch", "callback_epoch"}, 0.5)
    of_all_samples = 51 / 103  # rank 1 has 51 of them, and 3 of the 7 of the last batch
    expected |= {"in_step": of_all_samples, "in_step_epoch": of_all_samples}
    expected |= dict.fromkeys(("in_step_step", "at_batch_end", "callback_batch"), 3 / 7)
    assert logged == pytest.approx(expected)
