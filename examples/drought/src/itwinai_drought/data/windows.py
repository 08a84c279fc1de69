"""Windows of days, by arithmetic: nothing is stored for each of them."""

from __future__ import annotations

from dataclasses import dataclass

from itwinai.errors import ConfigurationError
from itwinai_drought.data.splits import Period


@dataclass(frozen=True)
class Windows:
    """Windows of equal length that lie in a period with all their days.

    The last one ends with the period, and may therefore begin earlier than the stride says.

    Args:
        period: the days.
        length: days of a window.
        warm_up: its first days, whose targets are not predicted: they tell the model the state of the cell.
        stride: days between the starts of two windows. With ``length - warm_up`` each day is predicted once, except for
            those that the last window has in common with the one before.

    Raises:
        ConfigurationError: the period is shorter than a window, or the warm-up leaves nothing to predict.
    """

    period: Period
    length: int
    warm_up: int
    stride: int

    def __post_init__(self) -> None:
        if not 0 <= self.warm_up < self.length:
            raise ConfigurationError(
                f"A window of {self.length} days with a warm-up of {self.warm_up} has no day to predict. Make the "
                "window longer than its warm-up."
            )
        if self.stride < 1:
            raise ConfigurationError(f"The stride must be at least 1 day; got {self.stride}.")
        if len(self.period) < self.length:
            raise ConfigurationError(
                f"A period of {len(self.period)} days holds no window of {self.length} days, and windows lie in one "
                "period with all their days. Make the period longer, or the windows shorter."
            )

    def __len__(self) -> int:
        return -(-(len(self.period) - self.length) // self.stride) + 1

    def start(self, number: int) -> int:
        """Return the first day of a window, as an index of the time axis."""
        return min(self.period.start + number * self.stride, self.period.stop - self.length)

    def repeated(self, number: int) -> int:
        """Return how many of the predicted days the window before has predicted already, where windows are tiles."""
        return self.period.start + number * self.stride - self.start(number)
