"""Scores are those of permetrics, whatever the batches and the workers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from itwinai_drought.metrics import KGE, NSE, RMSE, CellScore, Skill

CELLS, DAYS = 3, 400


@pytest.fixture
def series() -> tuple[torch.Tensor, torch.Tensor]:
    """Truth and prediction of each cell."""
    random = np.random.default_rng(1)
    truth = random.gamma(2, 3, (CELLS, DAYS)) + np.array([[0.0], [5.0], [300.0]])
    predicted = 0.8 * truth + random.normal(1, 1, truth.shape)
    return torch.tensor(predicted, dtype=torch.float32), torch.tensor(truth, dtype=torch.float32)


def score_in_batches(score: CellScore, predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    for start, stop in ((0, 100), (100, 150), (150, DAYS)):
        order = torch.tensor([2, 0, 1])
        score.update(predicted[order, start:stop], truth[order, start:stop], order)
    return score.compute()


def test_scores_are_those_of_permetrics(series: tuple[torch.Tensor, torch.Tensor]) -> None:
    permetrics = pytest.importorskip("permetrics.regression")
    predicted, truth = series
    for kind in (NSE, KGE, RMSE):
        mine = score_in_batches(kind(CELLS, reduction="none"), predicted, truth)
        for cell in range(CELLS):
            evaluator = permetrics.RegressionMetric(truth[cell].double().numpy(), predicted[cell].double().numpy())
            theirs = getattr(evaluator, kind.__name__)(decimal=9)
            assert mine[cell].item() == pytest.approx(theirs, abs=2e-5), (kind, cell)
        assert score_in_batches(kind(CELLS), predicted, truth) == mine.median()


def test_missing_truth_unseen_and_constant_cells_are_left_out(series: tuple[torch.Tensor, torch.Tensor]) -> None:
    predicted, truth = series
    holes = truth.clone()
    holes[0, ::3] = torch.nan
    kept = torch.isfinite(holes[0])
    with_holes = NSE(5, reduction="none")
    with_holes.update(predicted, holes, torch.arange(CELLS))
    without = NSE(5, reduction="none")
    without.update(predicted[:1, kept], truth[:1, kept], torch.tensor([0]))
    assert with_holes.compute()[0] == pytest.approx(without.compute()[0].item(), abs=1e-6)
    assert torch.isnan(with_holes.compute()[3:]).all()
    constant = NSE(1)
    constant.update(predicted[:1], torch.full((1, DAYS), 0.3), torch.tensor([0]))
    assert torch.isnan(constant.compute())
    with pytest.raises(ValueError, match="scores are kept for 2 cells"):
        NSE(2).update(predicted, truth, torch.arange(CELLS))


def test_skill_compares_with_a_reference(series: tuple[torch.Tensor, torch.Tensor]) -> None:
    predicted, truth = series
    cells = torch.arange(CELLS)
    skill, nse = Skill(CELLS, reduction="none"), NSE(CELLS, reduction="none")
    skill.update(predicted, truth, cells, truth.mean(dim=1, keepdim=True).expand_as(truth))
    nse.update(predicted, truth, cells)
    torch.testing.assert_close(skill.compute(), nse.compute(), rtol=1e-4, atol=1e-4)
    itself = Skill(CELLS)
    itself.update(predicted, truth, cells, predicted)
    assert itself.compute() == 0
