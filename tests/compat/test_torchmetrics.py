"""What `itwinai.compat.torchmetrics` takes for granted about private names."""

from __future__ import annotations

import torch
from torchmetrics import MeanSquaredError
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
