"""How well series of many cells are predicted: NSE, KGE, RMSE and skill, as torchmetrics."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric


class CellScore(Metric):
    """Score predicted series, each cell by itself, and return the median over the cells.

    Days without truth (NaN) are left out, and cells whose score is not defined. Sums are kept, so memory depends on the
    number of cells and not on that of days; workers add theirs.

    Args:
        cells: number of cells of the grid; series name theirs by its number.
        reduction: ``median`` over the cells that were seen, or ``none`` for the score of each cell, NaN where there is
            none: what a map of the score needs.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    sums: Tensor

    def __init__(self, cells: int, reduction: Literal["median", "none"] = "median") -> None:
        super().__init__()
        self.reduction = reduction
        self.add_state("sums", default=torch.zeros(8, cells, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, truth: Tensor, cell: Tensor, reference: Tensor | None = None) -> None:
        """Add series.

        Args:
            predicted: shape (batch, days).
            truth: the same shape; NaN where it is not known.
            cell: number of the cell of each series, shape (batch,).
            reference: what `Skill` compares with, of the same shape; the others do not need it.

        Raises:
            ValueError: a cell's number is not below ``cells``.
        """
        if len(cell) and int(cell.max()) >= self.sums.shape[1]:
            raise ValueError(
                f"A series is of cell {int(cell.max())}, and scores are kept for {self.sums.shape[1]} cells. Give the "
                "model the number of cells of the grid, lat times lon: cells=..."
            )
        known = torch.isfinite(truth)
        x, y = (torch.where(known, values, 0).double() for values in (predicted, truth))
        compared = y if reference is None else torch.where(known, reference, 0).double()
        rows = (known.double(), x, y, x * x, y * y, x * y, (y - x) ** 2, (y - compared) ** 2)
        for row, values in enumerate(rows):
            self.sums[row].index_add_(0, cell, values.sum(dim=1))

    def compute(self) -> Tensor:
        """Return the median over the cells, or the score of each."""
        scores = self._of_cells().float()
        return scores if self.reduction == "none" else scores.nanmedian()

    def _of_cells(self) -> Tensor:
        """Return the score of each cell, from the sums."""
        raise NotImplementedError

    def _variations(self) -> tuple[Tensor, Tensor]:
        """Return the sums of squared differences from the mean of prediction and truth; NaN where it is constant."""
        days, x, y, xx, yy = self.sums[:5]
        of_prediction, of_truth = (xx - x * x / days).clamp(min=0), yy - y * y / days
        return of_prediction, torch.where(of_truth > 1e-12 * yy, of_truth, torch.nan)


class NSE(CellScore):
    """1 - sum((y - x)^2) / sum((y - mean(y))^2), with x predicted and y true: 1 is perfect, 0 no better than the mean.

    Source: Nash and Sutcliffe, 1970, Journal of Hydrology 10, 282-290. For the NSE of anomalies, give series from which
    a climatology is subtracted: it tells whether years differ as they should.
    """

    def _of_cells(self) -> Tensor:
        return 1 - self.sums[6] / self._variations()[1]


class KGE(CellScore):
    """1 - sqrt((r - 1)^2 + (cv(x) / cv(y) - 1)^2 + (mean(x) / mean(y) - 1)^2), with correlation r and cv = std / mean.

    Source: Kling et al., 2012, Journal of Hydrology 424-425, 264-277; after Gupta et al., 2009, who compare standard
    deviations in place of cv.
    """

    def _of_cells(self) -> Tensor:
        days, x, y, _, _, xy = self.sums[:6]
        of_prediction, of_truth = self._variations()
        correlation = (xy - x * y / days) / (of_prediction * of_truth).sqrt().clamp(min=1e-30)
        bias = x / y
        spread = (of_prediction / of_truth).sqrt() / bias
        return 1 - ((correlation - 1) ** 2 + (spread - 1) ** 2 + (bias - 1) ** 2).sqrt()


class RMSE(CellScore):
    """sqrt(mean((y - x)^2)), in the unit of the target."""

    higher_is_better = False

    def _of_cells(self) -> Tensor:
        return (self.sums[6] / self.sums[0]).sqrt()


class Skill(CellScore):
    """1 - sum((y - x)^2) / sum((y - reference)^2): the NSE with a climatology in place of the mean.

    A series with a strong season is far better predicted by its climatology than by its mean, so its NSE says little
    (Schaefli and Gupta, 2007, Hydrological Processes 21, 2075-2080).
    """

    def _of_cells(self) -> Tensor:
        errors, from_reference = self.sums[6:]
        return 1 - errors / torch.where(from_reference > 0, from_reference, torch.nan)
