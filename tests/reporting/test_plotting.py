"""Pictures of lines can be read, also of values that do not change."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import pytest
from matplotlib.axes import Axes

from itwinai.loggers.in_memory import Curve
from itwinai.reporting.plotting import MARGIN, axis_limits, lines_figure, picture_of, svg_of
from itwinai.reporting.sections import Section
from itwinai.reporting.sections.metrics import metrics_section


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
    picture = svg_of(lines_figure({"a": ([20_000.5, 30_000.5, 25_000.5][: len(values)], values)}, "place"))
    shown = numbers(picture)
    assert shown and low <= min(shown) < max(shown) <= high
    assert not any("e" in text or "+" in text for text in texts(picture) if text != "place")


def test_small_changes_are_shown_in_full_numbers() -> None:
    picture = svg_of(lines_figure({"a": ([0.5, 0.75], [1000.0, 1000.02])}, "place"))
    assert {"1000.000", "1000.020"} <= set(texts(picture))


def test_steps_are_whole_numbers_and_lines_have_names() -> None:
    (picture,) = section_of(train_loss=[0.0, 1.0, 2.0], val_loss=[1.0, 1.0, 2.0]).pictures
    assert {"0", "1", "2", "train_loss", "val_loss", "step"} <= set(texts(picture.svg))
    assert "0.5" not in texts(picture.svg)[:5]


def section_of(**values: Sequence[float]) -> Section:
    """Return the section of metrics with these values in steps 0, 1...; ``__`` stands for a hyphen."""
    curves = {}
    for name, course in values.items():
        curve = curves[name.replace("__", "-")] = Curve()
        for step, value in enumerate(course):
            curve.add(step, value)
    return metrics_section(curves)


def has_margins(axes: Axes) -> bool:
    """Tell whether no point of any line is at the frame: the line would look cut off."""
    left, right = axes.get_xlim()
    low, high = axes.get_ylim()
    points = [point for line in axes.lines for point in zip(*line.get_data(), strict=True)]
    across, up = 0.5 * MARGIN * (right - left), 0.5 * MARGIN * (high - low)
    return all(left + across < x < right - across and low + up < y < high - up for x, y in points)


@pytest.mark.parametrize("from_zero", [False, True])
@pytest.mark.parametrize("values", [[0.66, 0.67, 0.68], [3.0, 80.0, 79.0], [1e-9, 2e-9, 3e-9], [5.0, 5.0, 5.0]])
def test_top_points_are_within_the_frame(values: list[float], from_zero: bool) -> None:
    figure = lines_figure({"a": ([0, 1, 2], values), "b": ([0, 1, 2], values[::-1])}, "step", from_zero=from_zero)
    assert has_margins(figure.axes[0])


@pytest.mark.parametrize(
    ("values", "log"), [([], False), ([], True), ([math.nan], True), ([0.0], False), ([2.0], True)]
)
def test_limits_of_little_are_still_limits(values: list[float], log: bool) -> None:
    low, high = axis_limits(values, log=log, from_zero=not log)
    assert (low > 0 if log else low == 0) and low < high
    assert all(low <= value <= high for value in values if math.isfinite(value))


def test_legends_stand_above_the_axes_and_only_where_there_is_a_choice() -> None:
    several = lines_figure({name: ([0, 1, 2], [0.0, 1.0, 2.0]) for name in "abcde"}, "step")
    svg_of(several)  # which lays it out
    (legend,), (axes,) = several.legends, several.axes
    assert axes.get_legend() is None and legend.get_window_extent().y0 >= axes.get_window_extent().y1
    assert lines_figure({"a": ([0, 1, 2], [0.0, 1.0, 2.0])}, "step").legends == []
    (picture,) = section_of(val_accuracy=[0.1, 0.2, 0.3]).pictures
    assert picture.title == "val_accuracy"


def test_two_points_give_no_picture() -> None:
    section = section_of(train_loss=[0.4, 0.3], val_loss=[0.5, 0.4])
    assert not section.pictures
    assert [row[0] for row in section.tables[0].rows] == ["train_loss", "val_loss"]
    (picture,) = section_of(train_loss=[0.4, 0.3, 0.2], val_loss=[0.5, 0.4]).pictures  # beside a line they are points
    assert picture.figure is not None
    assert [line.get_linestyle() for line in picture.figure.axes[0].lines] == ["-", "None"]


def test_the_same_curve_is_drawn_once() -> None:
    rates = [0.1, 0.1, 0.05, 0.02]
    section = section_of(lr__Adam=[0.2, *rates[:-1]], lr=rates, loss=[3.0, 2.0, 1.0], loss_again=[3.0, 2.0, 1.0])
    assert [row[0] for row in section.tables[0].rows] == ["loss (= loss_again)", "lr (= lr-Adam)"]
    for picture in section.pictures:
        assert picture.figure is not None and len(picture.figure.axes[0].lines) == 1
    different = section_of(lr=[0.1, 0.05, 0.02, 0.01], lr__Adam=[1.0, 0.5, 0.2, 0.1])
    (picture,) = different.pictures
    assert picture.figure is not None and len(picture.figure.axes[0].lines) == 2 and picture.title == "learning rate"


def test_a_wide_picture_says_so() -> None:
    figure = lines_figure({"a": ([0, 1, 2], [0.0, 1.0, 2.0])}, "step")
    assert picture_of("a", figure, wide=True).svg.startswith('<svg class="wide"')
    assert picture_of("a", figure).svg.startswith("<svg ")
    assert 'class="wide"' not in picture_of("a", figure).svg
