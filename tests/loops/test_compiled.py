"""``compile_step=True``: the numbers, the hooks and the state of a run are those of one that is not compiled."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection

from itwinai import ItwinaiTrainer
from itwinai.callbacks import ModelCheckpoint
from itwinai.errors import CompileStepError, ConfigurationError
from itwinai.loops.compiled.optimization import MOST_GRAPHS
from tests.loops import runs
from tests.loops import scenarios as drawn
from tests.loops.compiled_scenarios import far_apart, for_graphs, train_on
from tests.loops.test_exactness import EXAMPLES
from tests.loops.test_workers import draw_scenarios

CLOSE = 1e-6  # relative, of all weights as one vector


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Plain(L.LightningModule):
    """A small network; what a training step is made of differs from class to class."""

    optimizer: Any = torch.optim.SGD
    options: Any = {"lr": 0.05}

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters(), **self.options)


def loader(samples: int = 22) -> DataLoader:
    """Return a loader whose last batch is smaller."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, 6, generator=generator)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True).sin()), batch_size=4)


class Journal(L.Callback):
    """Notes what can be seen after each batch."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        gradients = [float(p.grad.norm()) if p.grad is not None else -1.0 for p in module.parameters()]
        step = (trainer.global_step, batch_idx, [group["lr"] for group in trainer.optimizers[0].param_groups])
        self.seen.append((step, logged, gradients, {name: float(value) for name, value in outputs.items()}))


class Hooked(Journal):
    """Notes in each hook within a step what it can see there."""

    def note(self, name: str, module: Any, *more: Any) -> None:
        gradients = [None if p.grad is None else float(p.grad.norm()) for p in module.parameters()]
        weights = [float(p.detach().norm()) for p in module.parameters()]
        self.seen.append((name, vars(module)["_current_fx_name"], gradients, weights, *more))

    def on_before_zero_grad(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.note("zero", module)

    def on_before_backward(self, trainer: Any, module: Any, loss: Any) -> None:
        self.note("backward", module, float(loss))

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        self.note("after", module)
        list(module.parameters())[-1].grad.mul_(0.5)

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.note("step", module)


def fit(kind: type[Plain], compiled: Any, journal: Journal | None = None, **options: Any) -> tuple[Any, Any, Any]:
    """Train a module, and return what is left of the run."""
    torch.manual_seed(1)
    module = kind()
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 9,
        "log_every_n_steps": 1,
    }
    journal = journal or Journal()
    path, validates = options.pop("ckpt_path", None), options.pop("validates", False)
    callbacks = [journal, *options.pop("callbacks", [])]
    trainer = ItwinaiTrainer(callbacks=callbacks, compile_step=compiled, **{**settings, **options})
    trainer.fit(module, loader(), loader(8) if validates else None, ckpt_path=path)
    return module, trainer, journal


def assert_alike(run: Any, reference: Any, close: float = CLOSE) -> None:
    """Check that two runs ended alike, and looked alike on the way."""
    (module, trainer, journal), (other, other_trainer, others_journal) = run, reference
    assert module.state_dict().keys() == other.state_dict().keys()
    states = [one.optimizers[0].state_dict() for one in (trainer, other_trainer)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert {*states[0]["state"]} == {*states[1]["state"]}
    for number, state in states[1]["state"].items():
        assert {name: value.dtype for name, value in states[0]["state"][number].items()} == {
            name: value.dtype for name, value in state.items()
        }
    vectors = [
        torch.cat([value.double().flatten() for value in (*one.state_dict().values(), *_values(state))])
        for one, state in zip((module, other), states, strict=True)
    ]
    assert (vectors[0] - vectors[1]).norm() <= close * vectors[1].norm()
    assert _rounded(journal.seen) == pytest.approx(_rounded(others_journal.seen), rel=20 * close, abs=20 * close)
    assert trainer.global_step == other_trainer.global_step


def _values(state: Any) -> list[Tensor]:
    return [value for _, one in sorted(state["state"].items()) for _, value in sorted(one.items()) if value is not None]


def _rounded(seen: Any) -> list[Any]:
    """Return the numbers of what was seen, in their order, and the names as they are."""
    if isinstance(seen, dict):
        return [part for key, value in seen.items() for part in (hash(key) % 1000, *_rounded(value))]
    if isinstance(seen, (list, tuple)):
        return [part for value in seen for part in _rounded(value)]
    return [hash(seen) % 1000 if isinstance(seen, str) or seen is None else seen]


# ------------------------------------------------------------------------------------------------- the numbers


class Busy(Plain):
    """Logs, draws, reads the trainer, has running statistics, and a scheduler that changes rates and betas."""

    optimizer = torch.optim.Adam
    options = {"lr": 0.01, "eps": 1e-3}

    def __init__(self) -> None:
        super().__init__()
        self.net.insert(2, nn.BatchNorm1d(8))
        self.register_buffer("running", torch.zeros(()))
        self.factors = {"noise": 0.01, "epoch": [0.1]}

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        x, y = batch
        loss = nn.functional.mse_loss(self.net(x + self.factors["noise"] * torch.randn_like(x)), y)
        self.running.add_(loss.detach())
        loss = loss * (1 + self.factors["epoch"][0] * self.current_epoch) / (1 + 0.01 * self.trainer.global_step)
        if self.current_epoch > 4:
            loss = loss + 0.01 * sum(p.square().sum() for p in self.parameters()) * (batch_idx % 2)
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        values = {"twice": 2 * loss, "epoch": self.current_epoch, "half_step": self.global_step / 2}
        self.log_dict(values, on_epoch=True)
        return {"loss": loss, "mean": x.mean()}

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=60)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def test_everything_at_once() -> None:
    both = [fit(Busy, compiled, gradient_clip_val=0.3) for compiled in (True, False)]
    assert_alike(*both, close=1e-5)  # Adam divides small differences of small gradients by each other
    assert both[0][1].global_step == 54


class Changing(Plain):
    """Accumulates, unfreezes a layer, and changes what Python knows, in hooks and in the trainer's flags."""

    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}

    def __init__(self) -> None:
        super().__init__()
        self.net[0].requires_grad_(False)
        self.scale, self.kept = 1.0, torch.ones(())

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx) * self.scale
        self.kept = 0.5 * self.kept + loss.detach()
        self.log("kept", self.kept)
        return loss

    def on_train_epoch_start(self) -> None:
        self.scale = 1.0 + 0.1 * self.current_epoch
        if self.current_epoch == 1:
            self.net[0].requires_grad_(True)
        if self.current_epoch == 2:
            self.trainer.gradient_clip_val = 0.2


@pytest.mark.parametrize("journal", [Journal, Hooked])
def test_what_changes_during_a_run(journal: type[Journal]) -> None:
    options: dict[str, Any] = {"accumulate_grad_batches": 2, "max_epochs": 4, "gradient_clip_algorithm": "value"}
    both = [fit(Changing, compiled, journal(), **options) for compiled in (True, False)]
    assert_alike(*both)
    for module, _, _ in both:
        assert module.kept.grad_fn is None
    assert float(both[0][0].kept) == pytest.approx(float(both[1][0].kept), rel=1e-5)


class Measured(Plain):
    """Updates metrics in the step, in all ways that torchmetrics documents."""

    def __init__(self) -> None:
        super().__init__()
        self.error, self.absolute = MeanSquaredError(), MeanAbsoluteError()
        self.several = MetricCollection({"a": MeanSquaredError(), "b": MeanAbsoluteError()}, prefix="train_")

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        x, y = batch
        prediction = self.net(x)
        self.error(prediction, y)
        self.log("error", self.error, on_epoch=True)
        self.log("absolute_of_batch", self.absolute(prediction, y))
        self.log_dict(self.several(prediction, y))
        return nn.functional.mse_loss(prediction, y)


def test_metrics_of_the_step() -> None:
    both = [fit(Measured, compiled, max_epochs=2) for compiled in (True, False)]
    assert_alike(*both)
    assert len(both[0][1].callback_metrics) == 6
    assert float(both[0][0].absolute.compute()) == pytest.approx(float(both[1][0].absolute.compute()), rel=1e-5)


class Layers(Plain):
    """Has layers that keep things for themselves, and validates between steps."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 3, batch_first=True)
        self.conv = nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten())
        self.net = nn.utils.parametrizations.weight_norm(nn.Linear(4, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.conv(self.lstm(x.view(-1, 2, 3))[0].transpose(1, 2)))

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val", nn.functional.mse_loss(self(batch[0]), batch[1]))


def test_layers_and_one_graph_for_all_epochs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        both = [fit(Layers, compiled, max_epochs=3, validates=True) for compiled in (True, False)]
    assert_alike(*both)
    assert sum("compiled the training step" in record.message for record in caplog.records) == 2  # shapes


class LogsTwice(Plain):
    """Logs one name twice in a step, with and without a batch size, and another in some steps only."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        for factor in (1.0, 2.0):
            self.log("loss", factor * loss, on_step=True, on_epoch=True)
        self.log("sized", loss, on_step=False, on_epoch=True, batch_size=1)
        self.log("highest", loss, on_step=False, on_epoch=True, reduce_fx="max")
        if batch_idx % 2:
            self.log("odd", loss, on_step=True, on_epoch=True)
        return loss


def test_logged_values_whose_sums_are_in_the_graph() -> None:
    both = [fit(LogsTwice, compiled, max_epochs=3) for compiled in (True, False)]
    assert_alike(*both)
    assert {"loss_epoch", "sized", "highest", "odd_step"} <= {*both[0][1].callback_metrics}


DRAWN = 3  # graphs take seconds each; of optimizing, resuming and logging, 57 were compared when this was written


def test_drawn_scenarios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that can be seen of drawn runs, hook by hook, is what it is without a graph."""
    monkeypatch.setattr(runs.DrawnModule, "train_on", train_on)
    scenarios = [
        for_graphs(scenario)
        for focus in (drawn.OPTIMIZING, drawn.RESUMING)
        for scenario in draw_scenarios(focus, EXAMPLES or DRAWN)
    ]
    for scenario in scenarios:
        lean = runs.run(scenario, ItwinaiTrainer, tmp_path / "run")
        compiled = runs.run(scenario, partial(ItwinaiTrainer, compile_step="auto"), tmp_path / "run")
        if found := far_apart(lean, compiled):
            pytest.fail(f"without against with a graph: {found}\n{scenario}", pytrace=False)


# ------------------------------------------------------------------------------------------------- resuming


class Resumed(Plain):
    optimizer = torch.optim.AdamW
    options = {"lr": 0.01, "eps": 1e-3}

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss


def test_resume_across_the_two(tmp_path: Path) -> None:
    whole = fit(Resumed, False, max_epochs=4)
    for begun in (True, False):
        saving = ModelCheckpoint(dirpath=tmp_path / str(begun), every_n_train_steps=8, save_top_k=-1)
        fit(Resumed, begun, max_epochs=4, max_steps=8, callbacks=[saving], enable_checkpointing=True)
        (path,) = (tmp_path / str(begun)).glob("*.ckpt")
        for continued in (True, False):
            module, trainer, journal = fit(Resumed, continued, max_epochs=4, ckpt_path=path)
            assert len(journal.seen) == 24 - 8
            journal.seen[:0] = whole[2].seen[:8]
            assert_alike((module, trainer, journal), whole)


# ------------------------------------------------------------------------------------------------- what cannot be


class Item(Plain):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss * (1 + loss.item())


class Branch(Plain):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) * (2 if batch[0].sum() > 0 else 1)


class ToNumpy(Plain):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) * float(batch[0].numpy().mean())


class Collects(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Any] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.outputs.append(loss.detach())
        return loss


class Counts(Plain):
    count = 0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        self.count += 1
        return super().training_step(batch, batch_idx)


class DrawsElsewhere(Plain):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) * random.random()


class UsesLogger(Plain):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        self.trainer.callbacks.clear()
        return super().training_step(batch, batch_idx)


class UsesMetric(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.error = MeanSquaredError()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) + self.error(self.net(batch[0]), batch[1])


class Manual(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Lbfgs(Plain):
    optimizer = torch.optim.LBFGS


class Dampened(Plain):
    options = {"lr": 0.05, "momentum": 0.9, "dampening": 0.5}


class GradientHook(Plain):
    def on_fit_start(self) -> None:
        next(self.parameters()).register_hook(lambda gradient: gradient)


class ForwardHook(Plain):
    def on_fit_start(self) -> None:
        self.net.register_forward_hook(lambda *_: None)


class OwnClipping(Plain):
    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None: ...


REFUSED: list[tuple[type[Plain], str]] = [
    (Item, r"test_compiled.py, line \d+ \(return loss \* \(1 \+ loss.item\(\)\)\)"),
    (Branch, r"needs the values of a tensor at .*batch\[0\].sum\(\) > 0"),
    (ToNumpy, r"cannot be traced at .*\.numpy\(\)"),
    (Collects, "changes self.outputs in place"),
    (Counts, "assigns self.count"),
    (DrawsElsewhere, "Python's random"),
    (UsesLogger, "uses trainer.callbacks"),
    (UsesMetric, "torchmetric"),
    (Manual, "manual optimization"),
    (Lbfgs, "the optimizer LBFGS is none of SGD, Adam"),
    (Dampened, "dampening"),
    (GradientHook, "gradient of net.0.weight"),
    (ForwardHook, "registered on the module net"),
    (OwnClipping, "overrides configure_gradient_clipping"),
]


@pytest.mark.parametrize(("kind", "message"), REFUSED)
def test_what_cannot_be_compiled(kind: type[Plain], message: str) -> None:
    with pytest.raises(CompileStepError, match=message) as raised:
        fit(kind, True, max_epochs=1)
    assert "compile_step='auto'" in str(raised.value)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("kind", [Counts, OwnClipping, Collects])
def test_auto_trains_what_cannot_be_compiled(kind: type[Plain], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        module, trainer, _ = fit(kind, "auto", max_epochs=2)
    lines = [record.message for record in caplog.records if "compile_step='auto' does not" in record.message]
    assert len(lines) == 1
    assert "\n" not in lines[0]
    assert trainer.global_step == 12
    if kind is Counts:
        assert module.count == 12
    if kind is Collects:
        assert len(module.outputs) == 12
        assert all(type(output) is Tensor and output.isfinite() for output in module.outputs)


def test_other_values_of_the_flag() -> None:
    with pytest.raises(ConfigurationError, match="compile_step must be True, False or 'auto'"):
        ItwinaiTrainer(compile_step="always")  # type: ignore[arg-type]
    assert MOST_GRAPHS > 2
