"""Leaderboards: the best first, nothing left out, and lines that fit."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

from itwinai.trials.records import Objective, Report, SearchRecord, TrialRecord
from itwinai.tune.leaderboard import leaderboard_table, leaderboard_text, write_leaderboard
from tests.support.searches import BATCH, LOSS, LR, MOMENTUM, OPTIMIZER, SPEED, search


def written(record: SearchRecord, folder: Path) -> list[dict[str, str]]:
    write_leaderboard(record, folder / "new" / "leaderboard.csv")
    with (folder / "new" / "leaderboard.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def unreported(record: SearchRecord, *numbers: int) -> SearchRecord:
    trials = [replace(one, reports=(), status="waiting") if one.number in numbers else one for one in record.trials]
    return replace(record, trials=tuple(trials))


def test_csv_has_all_trials_the_best_first(tmp_path: Path) -> None:
    record = unreported(search(60), 5, 9)
    rows = written(record, tmp_path)
    assert [int(row["trial"]) for row in rows] == [trial.number for trial in record.ranked()] + [5, 9]
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, 59)] + ["", ""]
    values = [float(row["val_loss"]) for row in rows[:-2]]
    assert values == sorted(values) and rows[-1]["val_loss"] == ""
    for row in rows:
        trial = record.trials[int(row["trial"])]
        assert float(row[LR]) == trial.parameters[LR]  # all digits
        assert row[OPTIMIZER] == trial.parameters[OPTIMIZER]
        assert (row[MOMENTUM] == "") == (row[OPTIMIZER] == "adam")
        assert (int(row["reports"]), float(row["seconds"])) == (len(trial.reports), trial.seconds)
        assert (row["status"], row["checkpoint"], row["error"]) == (trial.status, trial.checkpoint, trial.error)


def test_csv_with_several_objectives_has_the_front(tmp_path: Path) -> None:
    record = search(60, objectives=(LOSS, SPEED))
    rows = written(record, tmp_path)
    front = {trial.number for trial in record.pareto_front()}
    assert {int(row["trial"]) for row in rows if row["front"] == "1"} == front
    fronts = [int(row["front"]) for row in rows]
    assert fronts == sorted(fronts) and fronts[-1] > 3
    for row in rows:
        values = record.values(record.trials[int(row["trial"])])
        assert (float(row["val_loss"]), float(row["samples_per_second"])) == values


def test_csv_keeps_awkward_texts_and_names_apart(tmp_path: Path) -> None:
    parameters = {"status": 'a "b", c', "loss": [1, {"x": None}], "on": True, "none": None}
    trial = TrialRecord(0, "t", parameters, "failed", (Report(1, 1.0, {"loss": 0.1}),), error='says "no", stops\nhere')
    record = SearchRecord("s", (Objective("loss", "max"),), tuple(parameters), (trial,))
    (row,) = written(record, tmp_path)
    assert (row["status"], row["parameter:status"], row["error"]) == ("failed", 'a "b", c', 'says "no", stops\nhere')
    assert (row["loss"], row["parameter:loss"]) == ("0.1", '[1, {"x": null}]')
    assert (row["on"], row["none"]) == ("true", "null")


def test_table_names_parameters_by_their_shortest_end() -> None:
    record = search(20)
    paths = ("optimizer.lr", "scheduler.lr", "model.init_args.width", "lr")
    parameters = dict(zip(paths, (0.123456789, 12345.678, 7, 1e-7), strict=True))
    table = leaderboard_table(
        replace(record, parameters=paths, trials=(replace(record.trials[1], parameters=parameters),))
    )
    assert table.columns[2:7] == ["val_loss", "optimizer.lr", "scheduler.lr", "width", "lr"]
    assert list(table.rows[0][3:7]) == ["0.1235", "12350", "7", "1e-07"]


def test_text_is_aligned_and_says_what_is_not_shown() -> None:
    record = search(60)
    lines = leaderboard_text(record, top=4, width=110).splitlines()
    assert lines[0].split()[:4] == ["rank", "trial", "val_loss", "lr"]
    assert [line.split()[1] for line in lines[1:5]] == [str(trial.number) for trial in record.ranked()[:4]]
    at = lines[0].index("status")
    assert all(line[at - 2 : at] == "  " and line[at] != " " for line in lines[1:5])
    for column in ("trial", "val_loss", "reports"):  # figures end below each other
        end = lines[0].index(column) + len(column)
        assert all(line[end - 1] != " " and line[end : end + 2] == "  " for line in lines[:5])
    finished = sum(trial.status == "finished" for trial in record.trials)
    assert lines[5].startswith("... and 56 more: ") and f"{finished - 4} finished" in lines[5]
    failed = [trial for trial in record.trials if trial.status == "failed"]
    assert len(failed) == 4
    assert lines[6:] == [f"trial {trial.number} failed: {trial.error}" for trial in failed]


def test_text_fits_into_a_narrow_terminal() -> None:
    record = search(60)
    text = leaderboard_text(record, width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert "more parameters: see the CSV file" in text and "batch_size" not in text and "status" in text
    assert "batch_size" in leaderboard_text(record, width=200)


def test_text_of_searches_without_a_result() -> None:
    record = search(3)
    nothing = replace(record, trials=tuple(replace(one, reports=(), status="waiting") for one in record.trials))
    assert leaderboard_text(nothing) == "No trial has reported val_loss.\nOf 3 trials: 3 waiting"
    assert "No trial" in leaderboard_text(replace(record, trials=()))


def test_many_failures_take_few_lines() -> None:
    record = search(20)
    failed = [replace(one, status="failed", error=f"ValueError: {BATCH}\nis odd") for one in record.trials]
    lines = leaderboard_text(replace(record, trials=tuple(failed)), top=1).splitlines()
    assert lines[-6:] == [f"trial {number} failed: ValueError: {BATCH} is odd" for number in range(5)] + [
        "and so did trials 5, 6, 7, 8, 9, 10, 11, 12 and 7 more"
    ]
