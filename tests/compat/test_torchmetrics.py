"""What `itwinai.compat.torchmetrics` takes for granted about private names."""

from __future__ import annotations

from typing import Any

import torch
from torchmetrics import CatMetric, MeanSquaredError, Metric, MetricCollection, SumMetric
from torchmetrics.classification import BinaryPrecision, BinaryRecall
from torchmetrics.regression import PearsonCorrCoef

from itwinai.compat import torchmetrics as compat_torchmetrics


def test_state_of_a_metric() -> None:
    from torchmetrics import MeanMetric

    metric = MeanMetric()
    assert not compat_torchmetrics.is_updated(metric)
    metric.update(torch.tensor([1.0, 3.0]))
    assert compat_torchmetrics.is_updated(metric)
    other = MeanMetric()
    vars(other).update(compat_torchmetrics.metric_state(metric))
    assert other.compute() == 2.0 and compat_torchmetrics.is_updated(other)
    other.reset()
    assert not compat_torchmetrics.is_updated(other)


def test_metrics_are_merged() -> None:
    one, other, whole = MeanSquaredError(), MeanSquaredError(), MeanSquaredError()
    for number, metrics in enumerate([(one, whole), (other, whole), (other, whole)]):
        for metric in metrics:
            metric.update(torch.tensor([1.0, 2.0]), torch.tensor([0.5, float(number)]))
    kept = compat_torchmetrics.read_metric(other)
    assert (
        kept is not None and compat_torchmetrics.can_merge(one) and not compat_torchmetrics.can_merge(PearsonCorrCoef())
    )
    compat_torchmetrics.merge_metric(one, kept)
    torch.testing.assert_close(one.compute(), whole.compute())


def test_a_function_of_ours_merges_metrics() -> None:
    """Also those of classes that gather more by themselves; not those that gather by a function of their own."""
    merged: list[str] = []

    def merge(metric: Metric, by_torchmetrics: object) -> None:
        merged.append(type(metric).__name__)

    metric, own = MeanSquaredError(), MeanSquaredError(dist_sync_fn=lambda tensor, group: [tensor, tensor])
    for one in (metric, own):
        one.distributed_available_fn = lambda: True
        one.update(torch.tensor([1.0]), torch.tensor([3.0]))
    with compat_torchmetrics.merging_by(merge):
        assert metric.compute() == own.compute() == 4.0
    assert merged == ["MeanSquaredError"]
    assert compat_torchmetrics.gathers_objects(MeanAveragePrecisionLike()) and not compat_torchmetrics.gathers_objects(
        metric
    )


class MeanAveragePrecisionLike(MeanSquaredError):
    def _sync_dist(self, dist_sync_fn: Any = None, process_group: Any = None) -> None:
        super()._sync_dist(dist_sync_fn, process_group)


def test_what_a_metric_knows_of_itself() -> None:
    metric = CatMetric()
    assert compat_torchmetrics.updates_of(metric) == 0 and not compat_torchmetrics.is_synced(metric)
    metric.update(torch.tensor([1.0, 2.0]))
    (reduction,) = compat_torchmetrics.reductions_of(metric).values()
    assert compat_torchmetrics.is_concatenated(reduction) and not compat_torchmetrics.is_averaged(reduction)
    assert compat_torchmetrics.updates_of(metric) == 1
    assert compat_torchmetrics.empty_states(metric) == {"value": []}

    class Asking(MeanSquaredError):
        def compute(self) -> torch.Tensor:
            asked.append(compat_torchmetrics.computes_batch_value(self))
            return super().compute()

    asked: list[bool] = []
    asking = Asking()
    asking(torch.tensor([1.0]), torch.tensor([3.0]))
    asking.compute()
    assert asked == [True, False]


def test_metrics_are_as_they_were_before_a_batch_that_does_not_count() -> None:
    """Also when a collection has found, or has yet to find, which of its metrics share their states."""
    x, y = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 4.0])
    collection = MetricCollection([BinaryPrecision(), BinaryRecall(), SumMetric()])
    binary = torch.tensor([1, 0])
    expected = []
    for counted in (False, True, False, True):
        kept = [
            compat_torchmetrics.KeptState(metric) for metric in compat_torchmetrics.metrics_in([Holder(collection)])
        ]
        collection["BinaryPrecision"].update(x - 0.5, binary)
        collection["BinaryRecall"].update(x - 0.5, binary)
        collection["SumMetric"].update(y)
        if counted:
            expected.append(y)
        else:
            for one in kept:
                one.restore()
        assert collection["SumMetric"].compute() == sum(map(torch.sum, expected))
        assert compat_torchmetrics.updates_of(collection["BinaryRecall"]) == len(expected)

    shared = MetricCollection([BinaryPrecision(), BinaryRecall()])
    whole = MetricCollection([BinaryPrecision(), BinaryRecall()])
    for counted in (False, True, False, True):
        kept = [compat_torchmetrics.KeptState(metric) for metric in compat_torchmetrics.metrics_in([Holder(shared)])]
        shared.update(torch.tensor([0.9, 0.1, 0.8]), torch.tensor([1, 1, 0]))
        if counted:
            whole.update(torch.tensor([0.9, 0.1, 0.8]), torch.tensor([1, 1, 0]))
        else:
            for one in kept:
                one.restore()
    assert shared.compute() == whole.compute()
    assert compat_torchmetrics.updates_of(shared["BinaryRecall"]) == 2


class Holder:
    """Holds metrics in a list."""

    def __init__(self, *metrics: Any) -> None:
        self.metrics = {"all": list(metrics)}
