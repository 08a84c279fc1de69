"""Pictures of lines can be read, also of values that do not change."""

from __future__ import annotations

import math
import re

import pytest

from itwinai.loggers.recorder import Curve
from itwinai.report.curves import metrics_section
from itwinai.report.pictures import lines_picture


def texts(svg: str) -> list[str]:
    """Return the texts of a picture."""
    return [text.replace("\N{MINUS SIGN}", "-") for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def numbers(svg: str) -> list[float]:
    """Return the numbers at the vertical axis, all below those at the other."""
    found = [float(text) for text in texts(svg) if re.fullmatch(r"-?[\d.]+", text)]
    return [number for number in found if number < 20_000]


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([0.3, 0.3 + 1e-9], 0.1, 0.5),
        ([1000.0, 1000.0], 400, 1600),
        ([0.0, 0.0], -1, 1),
        ([-2.0, -2.0], -3, -1),
        ([5.0, math.nan, 5.0], 2, 8),
    ],
)
def test_an_axis_of_constant_values_is_around_them(values: list[float], low: float, high: float) -> None:
    picture = lines_picture({"a": ([20_000.5, 30_000.5, 25_000.5][: len(values)], values)}, "place")
    shown = numbers(picture)
    assert shown and low <= min(shown) < max(shown) <= high
    assert not any("e" in text or "+" in text for text in texts(picture) if text not in ("place", "a"))


def test_small_changes_are_shown_in_full_numbers() -> None:
    picture = lines_picture({"a": ([0.5, 0.75], [1000.0, 1000.02])}, "place")
    assert {"1000.000", "1000.020"} <= set(texts(picture))


def test_steps_are_whole_numbers_and_lines_have_names() -> None:
    curves = {}
    for name in ("train_loss", "val_loss"):
        curves[name] = Curve()
        for step in range(3):
            curves[name].add(step, float(step))
    (picture,) = metrics_section(curves).pictures
    assert {"0", "1", "2", "train_loss", "val_loss", "step"} <= set(texts(picture.svg))
    assert "0.5" not in texts(picture.svg)[:5]
