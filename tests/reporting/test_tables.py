"""Tables: figures below each other, names that fit, the same in a terminal and in a page."""

from __future__ import annotations

from itwinai.reporting.html import page
from itwinai.reporting.sections import Section, Table
from itwinai.reporting.tables import table_text

CELLS = Table(
    ["strategy", "workers", "samples/s", "B is"],
    [
        ["ddp", "1", "1,234 ± 20", "faster"],
        ["horovod", "16", "987", "-"],
        ["ray", "2", "failed: ModuleNotFoundError: horovod " + "x" * 100],
    ],
)


def test_figures_stand_below_each_other_and_text_at_the_left() -> None:
    heading, first, second, failed = table_text(CELLS).splitlines()
    assert heading == "strategy  workers   samples/s  B is"
    assert first == "ddp             1  1,234 ± 20  faster"
    assert second == "horovod        16         987  -"
    assert failed.startswith("ray             2  failed: ModuleNotFoundError: horovod x")
    assert len(failed) == 100 and failed.endswith("…")


def test_names_are_cut_at_both_ends_alike_until_the_lines_fit() -> None:
    rows = [[f"deepspeed_stage_{stage}", "2" * 84] for stage in (1, 2)]
    lines = table_text(Table(["strategy", "figure"], rows)).splitlines()
    assert max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines[1:]] == ["deepsp…stage_1", "deepsp…stage_2"]


def test_markup_of_rich_in_a_cell_is_text() -> None:
    assert "[red]a[/red]" in table_text(Table(["name", "n"], [["[red]a[/red]", "1"]]))


def test_a_column_is_numeric_where_every_cell_begins_with_a_figure() -> None:
    rows = [["1", "8 min 05 s", "1 CPU", "", "-1.2"], ["-", "12.3 ± 0.4", "adam", "", "nan"]]
    table = Table(list("abcde"), rows)
    assert [table.is_numeric(place) for place in range(5)] == [True, True, False, False, True]


def test_the_page_aligns_as_the_terminal_does_and_a_short_row_has_the_room_of_the_rest() -> None:
    text = page("title", [Section("Cells", tables=[CELLS])])
    assert '<th>strategy</th> <th class="number">workers</th> <th class="number">samples/s</th> <th>B is</th>' in text
    assert '<td class="number">987</td>' in text
    assert '<td colspan="2">failed: ' in text
