"""All sections of the report of a search, in the order in which people ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from itwinai.reporting.search.axis import Axis, parameter_axes
from itwinai.reporting.search.failures import failures_section
from itwinai.reporting.search.history import curves_picture, progress_picture
from itwinai.reporting.search.importance import Importances, importance_picture
from itwinai.reporting.search.leaderboard import leaderboard_table
from itwinai.reporting.search.parallel_coordinates import parallel_picture
from itwinai.reporting.search.pareto import pareto_pictures
from itwinai.reporting.search.ranking import Standing, standing_of
from itwinai.reporting.search.slices import slice_pictures
from itwinai.reporting.search.summary import summary_section
from itwinai.reporting.sections import Picture, Section, Table
from itwinai.trials.records import SearchRecord

TOP = 16
"""Trials of the leaderboard; the page folds longer tables up."""

OBJECTIVES = 4
"""Most objectives that have pictures of their own."""


def search_sections(
    record: SearchRecord, importances: Sequence[Importances] = (), best_config: str = ""
) -> list[Section]:
    """Return the sections of a search.

    The first section has facts and advice, which fit a terminal too (`itwinai.reporting.terminal.in_terminal`).

    Args:
        record: the search.
        importances: of the parameters, one for each objective that they are known for.
        best_config: the configuration of the best trial, as YAML without secrets.
    """
    standing = standing_of(record)
    axes = parameter_axes(standing)
    sections: list[Section | None] = [
        summary_section(standing, importances, axes),
        _leaderboard(standing),
        _tradeoff(standing),
        _history(standing),
        *(_parameters(standing, index, importances, axes) for index in range(len(record.objectives[:OBJECTIVES]))),
        failures_section(standing),
        _configuration(standing, best_config),
        _settings(record),
    ]
    return [section for section in sections if section is not None]


def _leaderboard(standing: Standing) -> Section | None:
    if not standing.ranked:
        return None
    return Section("Leaderboard", tables=[leaderboard_table(standing, TOP)])


def _tradeoff(standing: Standing) -> Section | None:
    pictures = list(pareto_pictures(standing))
    return Section("Trade-off", pictures=pictures) if pictures else None


def _history(standing: Standing) -> Section | None:
    objectives = range(len(standing.record.objectives[:OBJECTIVES]))
    drawn = [draw(standing, index) for index in objectives for draw in (curves_picture, progress_picture)]
    pictures = [picture for picture in drawn if picture is not None]
    return Section("History", pictures=pictures) if pictures else None


def _parameters(
    standing: Standing, index: int, importances: Sequence[Importances], axes: Mapping[str, Axis]
) -> Section | None:
    if len(standing.ranked) < 2 or not axes:
        return None
    metric = standing.record.objectives[index].metric
    own = next((one for one in importances if one.objective == metric), Importances(metric))
    order = sorted(axes, key=lambda path: -own.values.get(path, 0.0))
    axes = {path: axes[path] for path in order}
    drawn: list[Picture | None] = [
        parallel_picture(standing, index, axes),
        importance_picture(standing, own),
        *slice_pictures(standing, index, axes),
    ]
    title = "Parameters" if len(standing.record.objectives) == 1 else f"Parameters and {metric}"
    facts = {"importance": own.note} if own.note and own.values else {}
    missing = [f"importance of the parameters: {own.note}"] if own.note and not own.values else []
    return Section(title, facts, pictures=[picture for picture in drawn if picture is not None], missing=missing)


def _configuration(standing: Standing, best_config: str) -> Section | None:
    if not best_config or not standing.front:
        return None
    title = f"of trial {standing.front[0].number}, as YAML"
    return Section("Best configuration", tables=[Table(("configuration",), [(best_config,)], title)])


def _settings(record: SearchRecord) -> Section | None:
    if not record.settings:
        return None
    return Section("Settings", tables=[Table(("what", "value"), list(record.settings.items()), "Settings")])
