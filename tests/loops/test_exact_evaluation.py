"""Validation with several workers gives the numbers of one process, or an error that says what to do."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics import (
    CatMetric,
    MaxMetric,
    MeanAbsoluteError,
    MeanMetric,
    MeanSquaredError,
    Metric,
    MetricCollection,
    SumMetric,
)

from itwinai.errors import LoggedKeysError, MetricMergeError
from tests.support.cases import make_trainer

STRATEGIES = ("ddp", "deepspeed_stage_1", "deepspeed_stage_3", "horovod", "ray")


class Boxes(Metric):
    """Keeps tensors of several shapes, as of the objects in an image: as many as there are samples."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("boxes", [], dist_reduce_fx=None)

    def update(self, x: Tensor) -> None:
        self.boxes += [torch.full((int(value) % 3, 4), float(value)) for value in x]

    def compute(self) -> Tensor:
        return torch.stack([box.sum() for box in self.boxes]).sum() + len(self.boxes)


class Labels(Metric):
    """Concatenates integers in two dimensions: a worker without samples knows neither."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, x: Tensor) -> None:
        self.labels.append(torch.stack([x, x * x], dim=1).long())

    def compute(self) -> Tensor:
        return (self.labels if isinstance(self.labels, Tensor) else torch.cat(self.labels)).sum().float()


class Names(Metric):
    """Keeps what is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("names", [], dist_reduce_fx=None)

    def update(self, x: Tensor) -> None:
        self.names += [f"sample {int(value)}" for value in x]

    def compute(self) -> Tensor:
        return torch.tensor(float(len(set(self.names)) + 100 * len(self.names)))

    def _apply(self, function: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Names:
        names, self.names = self.names, []
        super()._apply(function, *args, **kwargs)
        self.names = names
        return self


class ByFunction(Metric):
    """Has a state that a function reduces, and one that nothing does."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx=lambda states: states.sum(0))
        self.add_state("stacked", torch.zeros(()), dist_reduce_fx=None)

    def update(self, x: Tensor) -> None:
        self.total += x.sum()
        self.stacked += len(x)

    def compute(self) -> Tensor:
        return self.total / self.stacked.sum()


class Counting(Metric):
    """Counts in an attribute of which torchmetrics knows nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.count = 0

    def update(self, x: Tensor) -> None:
        self.total += x.sum()
        self.count += len(x)

    def compute(self) -> Tensor:
        return self.total / self.count


class Averaging(Metric):
    """Keeps a mean, which is that of all samples only if all workers have equally many."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("mean", torch.zeros(()), dist_reduce_fx="mean")
        self.add_state("count", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, x: Tensor) -> None:
        self.count += len(x)
        self.mean += (x.mean() - self.mean) * len(x) / self.count

    def compute(self) -> Tensor:
        return self.mean


class Measured(L.LightningModule):
    """Measures its samples in every way; the values come back as ``values``."""

    def __init__(self, **metrics: Metric | MetricCollection) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        nn.init.constant_(self.layer.weight, 0.5)
        nn.init.constant_(self.layer.bias, 0.1)
        self.metrics = nn.ModuleDict(metrics)
        self.values: dict[str, Any] = {}

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x = batch[0].float()
        y = self.layer(x[:, None])[:, 0]
        for name, metric in self.metrics.items():
            if name in ("squared error", "collection"):
                metric(y, x)
            elif name == "weighted":
                metric(x.sin(), weight=x + 1)
            elif name == "on some workers":
                if bool((x % 5 == 0).any()):
                    metric.update(x[x % 5 == 0])
            else:
                metric.update(x)
            if name == "in the step":  # a collective operation, which all have to call
                self.values["last step"] = float(metric.compute())
        self.log("mean", x.mean(), sync_dist=True)
        self.log("float", float(x.mean()), sync_dist=True, batch_size=len(x))
        for reduction in ("sum", "max", "min"):
            self.log(reduction, getattr(x, reduction)(), sync_dist=True, reduce_fx=reduction)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        for name, metric in self.metrics.items():
            value = metric.compute()
            of_name = {f"{name} {key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
            self.values |= {key: one.flatten().tolist() for key, one in of_name.items()}


def all_metrics() -> dict[str, Metric | MetricCollection]:
    return {
        "squared error": MeanSquaredError(),
        "weighted": MeanMetric(),
        "total": SumMetric(),
        "largest": MaxMetric(),
        "cat": CatMetric(),
        "collection": MetricCollection({"squared": MeanSquaredError(), "absolute": MeanAbsoluteError()}),
        "boxes": Boxes(),
        "labels": Labels(),
        "names": Names(),
        "by function": ByFunction(),
        "on some workers": Labels(),
        "in the step": SumMetric(),
    }


def validate(strategy: str, workers: int, module: Measured, loader: DataLoader) -> dict[str, Any]:
    """Return all that was measured, and logged."""
    (logged,) = make_trainer(strategy, workers).validate(module, loader, verbose=False)
    return {**module.values, **logged}


def numbers(length: int, batch_size: int) -> DataLoader:
    return DataLoader(TensorDataset(torch.arange(length)), batch_size)


def assert_same(values: dict[str, Any], expected: dict[str, Any]) -> None:
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        if not isinstance(value, list) or not all(map(math.isnan, value)):
            assert values[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_is_measured_as_in_one_process(strategy: str, request: pytest.FixtureRequest) -> None:
    """With a last batch that is smaller on some workers, or that only some of them have, or that only one has."""
    if strategy == "ray":
        request.getfixturevalue("kept_ray_workers")
    sizes = [(2, length, batch) for length, batch in ((1, 1), (3, 1), (7, 4))]
    if strategy == "ddp":
        sizes += [(workers, length, batch) for workers in (2, 3) for length in (3, 7, 50) for batch in (1, 4)]
        sizes += [(3, 1, 4), (3, 2, 1)]
    for workers, length, batch_size in sizes:
        one = validate("auto", 1, Measured(**all_metrics()), numbers(length, batch_size * workers))
        several = validate(strategy, workers, Measured(**all_metrics()), numbers(length, batch_size))
        assert_same(several, one)


def test_what_comes_back_is_merged_too() -> None:
    module = Measured(boxes=Boxes(), names=Names(), some=Labels())
    validate("ddp", 2, module, numbers(7, 4))
    boxes = module.metrics["boxes"]
    assert float(boxes.compute()) == module.values["boxes"][0]


@pytest.mark.parametrize(
    ("metric", "length", "message"),
    [
        (Counting, 8, r"metric \(Counting\) accumulates in count, which is not a state .* self.add_state\(.count., "),
        (Averaging, 7, r"metric \(Averaging\) averages its state mean .* unequal numbers of samples"),
        (Averaging, 8, ""),
    ],
)
def test_metrics_that_cannot_be_merged_are_an_error(metric: type[Metric], length: int, message: str) -> None:
    module = Measured(metric=metric())
    if message:
        with pytest.raises(MetricMergeError, match=message):
            validate("ddp", 2, module, numbers(length, 4))
    else:
        assert validate("ddp", 2, module, numbers(length, 4))["metric"] == [3.5]


class LoggingSometimes(Measured):
    """Logs a metric only where it was updated."""

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        if bool((batch[0] == 0).any()):
            self.metrics["total"].update(batch[0])
            self.log("total", self.metrics["total"])


def test_metric_that_only_some_workers_log() -> None:
    with pytest.raises(LoggedKeysError, match="rank 0: the metric validation_step.total\n  rank 1: none of these"):
        validate("ddp", 2, LoggingSometimes(total=SumMetric()), numbers(8, 2))


def test_metric_that_is_not_to_be_synchronised() -> None:
    class Own(Measured):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.metrics["own"].update(batch[0])
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self.log("logged", self.metrics["own"])
            self.values.setdefault("warnings", []).extend(str(one.message) for one in caught)

    values = validate("ddp", 2, Own(own=SumMetric(sync_on_compute=False)), numbers(8, 2))
    assert values["logged"] == 0 + 1 + 4 + 5
    assert "SumMetric(sync_on_compute=False): only rank 0's samples are in the logged value" in values["warnings"][0]


# ------------------------------------------------------------------------------------------- without indices to deal


class Stream(IterableDataset):
    """The first numbers, divided among the ranks or not."""

    def __init__(self, length: int, divided: bool) -> None:
        self.length = length
        self.divided = divided

    def __iter__(self) -> Iterator[list[Tensor]]:
        rank, workers = (dist.get_rank(), dist.get_world_size()) if self.divided else (0, 1)
        return iter([[torch.tensor(number)] for number in range(self.length)[rank::workers]])


@pytest.mark.parametrize("divided", [False, True])
@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_3"])
def test_iterable_datasets_count_each_sample_once(strategy: str, divided: bool) -> None:
    """Also where the parts of the ranks are unequal, or one has none."""
    for length in (1, 5, 8):
        one = validate("auto", 1, Measured(**all_metrics()), DataLoader(Stream(length, False), 4))
        several = validate(strategy, 2, Measured(**all_metrics()), DataLoader(Stream(length, divided), 2))
        for values in (one, several):
            values["cat"].sort()
        assert_same(several, one)


def test_processes_of_a_loader_that_stay_give_each_sample_once_in_each_epoch() -> None:
    class Twice(Measured):
        def on_validation_epoch_end(self) -> None:
            self.values.setdefault("sums", []).append(float(self.metrics["total"].compute()))
            self.metrics["total"].reset()

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.layer(batch[0][:, None].float()).mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Twice(total=SumMetric())
    loader = DataLoader(Stream(5, False), 1, num_workers=1, persistent_workers=True)
    make_trainer("ddp", 2, max_epochs=2).fit(module, numbers(4, 2), loader)
    assert module.values["sums"] == [0 + 1 + 2 + 3, 10, 10]  # two batches of each worker in the sanity check


def test_other_loaders_count_each_batch_once() -> None:
    class Batches:
        def __iter__(self) -> Iterator[list[Tensor]]:
            return iter([[torch.tensor([float(number)])] for number in range(5)])

    loader: Any = Batches()
    values = validate("ddp", 2, Measured(total=SumMetric()), loader)
    assert values["total"] == [10] and values["mean"] == 2


class Collecting(L.LightningModule):
    """Collects samples itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[int] = []

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        gathered = self.all_gather(batch[0])
        counts = self.all_gather(torch.tensor(not self.trainer.is_repeated_batch))  # type: ignore[attr-defined]
        self.seen += gathered[counts].flatten().tolist()


def test_repeated_samples_are_known_as_such() -> None:
    module = Collecting()
    make_trainer("ddp", 3).validate(module, numbers(7, 1), verbose=False)
    assert module.seen == list(range(7))
