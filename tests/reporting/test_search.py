"""The page of a search: right in what it says, and safe and whole in how it says it."""

from __future__ import annotations

import math
import random
import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.collections import LineCollection
from PIL import Image

from itwinai.reporting.search.axis import Axis, objective_axis, parameter_axes, parameter_axis
from itwinai.reporting.search.history import curves_picture, progress_picture
from itwinai.reporting.search.importance import Importances
from itwinai.reporting.search.ranking import standing_of
from itwinai.reporting.search.recommendations import advice
from itwinai.reporting.search.sections import search_sections
from itwinai.reporting.search.slices import slice_pictures
from itwinai.reporting.search.summary import summary_section
from itwinai.reporting.sections import Section
from itwinai.reporting.terminal import in_terminal
from itwinai.trials.records import Objective, Range, Report, SearchRecord, TrialRecord
from itwinai.tune.record_file import read_record, write_record
from itwinai.tune.report import write_report
from tests.support.searches import BATCH, LOSS, LR, OPTIMIZER, RANGES, SPEED, WIDTH, search

CONFIG = "model:\n  init_args:\n    lr: 0.003\n"
MIN = Objective("y", "min")


def page_of(record: SearchRecord, folder: Path) -> str:
    write_report(record, folder / "report.html", CONFIG)
    return (folder / "report.html").read_text(encoding="utf-8")


def titled(sections: Sequence[Section], title: str) -> Section:
    (found,) = [section for section in sections if section.title == title]
    return found


def made(
    values: Sequence[float | Sequence[float]],
    parameters: Sequence[Mapping[str, Any]] | None = None,
    objective: Objective = MIN,
    ranges: Mapping[str, Range] | None = None,
) -> SearchRecord:
    """Return finished trials with these values, or courses of values."""
    given = parameters or [{"a": float(number)} for number in range(len(values))]
    trials = []
    for number, (value, drawn) in enumerate(zip(values, given, strict=True)):
        course = [value] if isinstance(value, (int, float)) else value
        reports = [Report(count, float(count), {objective.metric: one}) for count, one in enumerate(course, start=1)]
        trials.append(TrialRecord(number, f"t{number}", drawn, "finished", tuple(reports), seconds=1.0))
    return SearchRecord("s", (objective,), tuple(given[0]), tuple(trials), ranges=ranges or {})


def summarized(record: SearchRecord, importances: Sequence[Importances] = ()) -> Section:
    standing = standing_of(record)
    return summary_section(standing, importances, parameter_axes(standing))


def advised(record: SearchRecord, importances: Sequence[Importances] = ()) -> list[str]:
    return list(summarized(record, importances).advice)


# ------------------------------------------------------------------------------------------------------ the page


def is_alone(text: str) -> None:
    """Check that a page loads nothing, and runs nothing."""
    assert not re.search(r"<script|<link|<iframe|<object|@import|<[^>]*\son\w+=", text)
    loaded = re.findall(r"""(?:src|href|data|action)\s*=\s*["']([^"']*)""", text)
    assert loaded and all(re.match(r"#|data:image/png", address) for address in loaded)
    assert all(address.startswith("#") for address in re.findall(r"url\(([^)]*)\)", text))


@pytest.mark.parametrize("objectives", [(LOSS,), (LOSS, SPEED), (LOSS, SPEED, Objective("parameters", "min"))])
def test_page_stands_alone_and_shows_everything(objectives: Sequence[Objective], tmp_path: Path) -> None:
    record = search(50, objectives=objectives)
    text = page_of(record, tmp_path)
    is_alone(text)
    front = record.pareto_front()
    for word in ("Leaderboard", "History", "Failed trials", "CUDA out of memory", "lr: 0.003", "ASHA, half go on"):
        assert word in text
    for objective in objectives:
        assert f"Importance for the best values of {objective.metric}" in text
        assert f"{objective.metric} against momentum" in text
    assert (f"{len(front)} trials that no other dominates" in text) == (len(objectives) > 1)
    assert text.count("<svg") == text.count("</svg>") == len(objectives) * (2 + 2 + 6) + math.comb(len(objectives), 2)


def test_page_is_drawn_by_a_browser(tmp_path: Path) -> None:
    page_of(search(40, objectives=(LOSS, SPEED)), tmp_path)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    subprocess.run(
        ["chromium", *options, "--window-size=1100,3000", f"--screenshot={tmp_path / 'page.png'}"]
        + [(tmp_path / "report.html").as_uri()],
        check=True,
        capture_output=True,
        timeout=120,
    )
    with Image.open(tmp_path / "page.png") as image:
        whole = image.convert("RGB")
        # The colors of the parallel lines run from dark violet to yellow, wherever in the page these are.
        assert len(whole.getcolors(1 << 24) or []) > 300
        # The picture with all parameters takes the whole width: its bar of colors is at the right.
        right = whole.crop((880, 0, 1100, 3000)).getcolors(1 << 24) or []
        assert any(green > 180 and red > 150 and blue < 90 for _, (red, green, blue) in right)


def test_title_says_what_was_searched_when_with_which_version(tmp_path: Path) -> None:
    told = {"model": "Net", "begun": "2026-03-05T14:30:00+01:00", "command": "/a/bin/itwinai tune -c c.yaml"}
    told |= {"strategy": "ddp", "workers per trial": "2"}
    text = page_of(replace(search(10), name="search", settings={**told, "itwinai": "1.2.3"}), tmp_path)
    header = text[text.index("<header>") : text.index("</header>")]
    assert "<h1>Hyperparameter search of Net</h1>" in header
    assert "strategy ddp · 2 workers per trial · 5 March 2026, 14:30 (UTC+01:00) · itwinai 1.2.3" in header
    assert "itwinai tune -c c.yaml" in header and "/a/bin" not in header
    assert "search wide · " in page_of(replace(search(10), name="wide", settings=told), tmp_path)


def test_trials_stand_at_their_choice_and_the_best_exactly_there() -> None:
    drawn = [{"c": ("a", "b", "c")[number % 3]} for number in range(30)]
    standing = standing_of(made([1.0 + 0.01 * (number // 3) for number in range(29)] + [0.5], drawn))
    (picture,) = slice_pictures(standing, 0, parameter_axes(standing))
    assert picture.figure is not None
    dots, star = picture.figure.axes[0].collections
    assert star.get_offsets().tolist() == [[2.0, 0.5]]  # the last one has c
    places = [x for x, _ in dots.get_offsets().tolist()]
    assert len(places) == 29 and all(abs(x - round(x)) <= 0.3 for x in places)
    counted = Counter(round(x) for x in places)
    assert counted == {0: 10, 1: 10, 2: 9}
    alone = standing_of(made([float(number) for number in range(30)], drawn))
    (picture,) = slice_pictures(alone, 0, parameter_axes(alone))
    assert picture.figure is not None
    offsets = picture.figure.axes[0].collections[0].get_offsets().tolist()
    assert all(x == round(x) for x, _ in offsets)  # where nothing is hidden all stand at their choice


def test_pictures_have_room_around_what_they_show() -> None:
    standing = standing_of(search(40))
    drawn = [
        curves_picture(standing, 0),
        progress_picture(standing, 0),
        *slice_pictures(standing, 0, parameter_axes(standing)),
    ]
    for picture in drawn:
        assert picture is not None and picture.figure is not None
        (axes,) = picture.figure.axes
        (left, right), (low, _) = axes.get_xlim(), axes.get_ylim()
        for collection in axes.collections:
            points = [point for path in collection.get_paths() for point in path.vertices.tolist()]
            if not isinstance(collection, LineCollection):
                points = collection.get_offsets().tolist()
            assert all(left < x < right for x, _ in points)
            assert all(
                low < y for _, y in points
            )  # what is worse by far is beyond the upper edge, and the title says so
        (legend,) = picture.figure.legends
        assert axes.get_legend() is None and legend is not None


def test_texts_of_users_are_texts(tmp_path: Path) -> None:
    metric, path, value = '<b>&"loss"</b> $x$', "model.<i>'a'</i>", "<img src=x onerror=alert(1)> $y$"
    record = made(
        [float(number % 7) for number in range(20)],
        [{path: (value, "other")[number % 2], "_x": number, "$z$": 0.1 * number} for number in range(20)],
        Objective(metric, "min"),
    )
    failed = replace(record.trials[0], status="failed", error="</section><script>alert(2)</script>")
    record = replace(record, trials=(failed, *record.trials[1:]), name="<u>name</u>", settings={"<s>": "<em>"})
    text = page_of(record, tmp_path)
    is_alone(text)
    for tag in ("<b>", "<i>", "<img", "<u>", "<s>", "<em>", "</section><"):
        assert tag not in text
    assert "$x$" in text and "$y$" in text and ">$z$</text>" in text  # no formulas


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_searches_with_little_in_them(count: int, tmp_path: Path) -> None:
    text = page_of(search(count), tmp_path)
    is_alone(text)
    assert ("Leaderboard" in text) == (count > 0)
    assert ("needs 8 at least" in text) == (count > 1)


def test_search_without_a_result_says_why() -> None:
    record = replace(made([1.0, 2.0]), objectives=(Objective("val_los", "min"),), parameters=("a",))
    sections = search_sections(record)
    assert titled(sections, "Summary").facts["best"] == "none: no trial has reported val_los"
    assert [section.title for section in sections] == ["Summary"]
    assert advised(record) == ["No trial has reported val_los. Reported were y."]
    near = replace(made([1.0], objective=Objective("val_loss", "min")), objectives=record.objectives)
    assert advised(near) == ["No trial has reported val_los. Reported were val_loss. Did you mean 'val_loss'?"]
    assert "infinite or not a number" in advised(made([math.nan, math.inf]))[0]
    both = replace(made([1.0]), objectives=(MIN, Objective("z", "max")))
    assert titled(search_sections(both), "Summary").facts["best"] == "none: no trial has reported y and z together"


def test_report_can_be_made_again_from_the_file(tmp_path: Path) -> None:
    record = search(30)
    write_record(record, tmp_path / "search.json")
    (tmp_path / "again").mkdir()
    assert page_of(record, tmp_path) == page_of(read_record(tmp_path / "search.json"), tmp_path / "again")


def test_thousand_trials_stay_small_and_readable(tmp_path: Path) -> None:
    text = page_of(search(1000, reports=20), tmp_path)
    assert len(text) < 5e6
    assert text.count("data:image/png") >= 8  # lines and points are painted
    assert "The best 16 of 1,000 trials" in text and "50 of 60 trials that failed" in text


# ------------------------------------------------------------------------------------------------------- summary


def test_summary_of_one_objective() -> None:
    record = search(60)
    (best, *_) = record.ranked()
    summary = summarized(record)
    facts = summary.facts
    assert facts["trials"] == "60: 24 finished, 32 stopped, 4 failed"
    assert facts["best"].startswith(f"trial {best.number}: val_loss 0.3043 at report 12 of 12")
    assert facts["gain"] == "0.3043 instead of 1.789 of trial 0, the first: 83 % lower"
    assert "lr=0.003469" in facts["parameters"] and facts["checkpoint"] == best.checkpoint
    assert facts["searched over"] == "lr, width, dropout, optimizer, momentum, batch_size"
    assert all(len(line) <= 100 for line in in_terminal("Search", [summary]).splitlines())


def test_gain_is_over_the_default_where_there_is_one() -> None:
    record = made([4.0, 5.0, 8.0], objective=Objective("y", "max"))
    default = replace(record.trials[1], name="default")
    record = replace(record, trials=(record.trials[0], default, record.trials[2]))
    facts = summarized(record).facts
    assert facts["gain"] == "8 instead of 5 of the default: 60 % higher"


# ------------------------------------------------------------------------------------------------- Pareto fronts


@pytest.mark.parametrize("modes", [("min", "min"), ("min", "max"), ("max", "max"), ("max", "min", "min")])
def test_pareto_points_are_those_that_nothing_dominates(modes: Sequence[Any]) -> None:
    rng = random.Random(len(modes))
    objectives = tuple(Objective(f"m{place}", mode) for place, mode in enumerate(modes))
    points = [[float(rng.randint(0, 12)) for _ in modes] for _ in range(120)]
    names = [objective.metric for objective in objectives]
    trials = tuple(
        TrialRecord(number, "t", {}, "finished", (Report(1, 1.0, dict(zip(names, point, strict=True))),))
        for number, point in enumerate(points)
    )

    def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
        gains = [(b - a) if mode == "min" else (a - b) for a, b, mode in zip(one, other, modes, strict=True)]
        return min(gains) >= 0 and max(gains) > 0

    expected = {number for number, point in enumerate(points) if not any(dominates(other, point) for other in points)}
    standing = standing_of(SearchRecord("s", objectives, (), trials))
    assert {trial.number for trial in standing.front} == expected
    for number, front in standing.fronts.items():  # each is dominated by one of the front before, and none of its own
        by = {standing.fronts[other] for other, point in enumerate(points) if dominates(point, points[number])}
        assert by == set(range(front))


# --------------------------------------------------------------------------------------------------------- scales


def test_scales_where_the_range_is_known() -> None:
    assert parameter_axis([1e-3], Range(1e-4, 1e-1, log=True)) == Axis("log", 1e-4, 1e-1, bounded=True)
    assert parameter_axis([1, 5], Range(0, 4)) == Axis("linear", 0, 5, whole=True, bounded=True)
    assert parameter_axis([2.0, 3.0], Range()) == Axis("linear", 2.0, 3.0)
    assert parameter_axis(["b"], Range(choices=("c", "b", "a"))).labels == ["c", "b", "a"]
    assert parameter_axis([32], Range(choices=(64, 16, 32))).labels == ["16", "32", "64"]


def test_scales_where_it_is_not() -> None:
    rng = random.Random(0)
    assert parameter_axis([10 ** rng.uniform(-5, -1) for _ in range(50)]).kind == "log"
    assert parameter_axis([rng.random() for _ in range(1000)]).kind == "linear"  # although it spans decades
    assert parameter_axis([rng.choice((16, 32, 64)) for _ in range(50)]).labels == ["16", "32", "64"]
    assert parameter_axis([1.0, 2.0, None]).kind == "choice"
    assert parameter_axis([True, False]).labels == ["false", "true"]
    assert parameter_axis([0.123411, 0.123412, "x", "1", 1]).labels == ['"1"', "x", "0.123411", "0.123412", "1"]


def test_places_and_ticks() -> None:
    scale = Axis("log", 1e-4, 1.0)
    assert scale.place(1e-2) == pytest.approx(0.5)
    places, texts = zip(*scale.ticks(), strict=True)
    assert places == pytest.approx((0, 0.25, 0.5, 0.75, 1)) and texts == ("0.0001", "0.001", "0.01", "0.1", "1")
    assert Axis("linear", 2.0, 2.0).place(2.0) == 0.5
    assert [text for _, text in Axis("linear", 0, 0.5).ticks()] == ["0", "0.1", "0.2", "0.3", "0.4", "0.5"]
    many = parameter_axis([f"name {number:03}" for number in range(100)])
    assert len(many.ticks()) <= 12 and many.place("name 099") == 1.0


def test_a_diverged_trial_does_not_hide_the_others() -> None:
    values = [1.0 + 0.01 * number for number in range(50)] + [1e6]
    spread = objective_axis(values, MIN)
    assert (spread.high, spread.hidden, spread.kind) == (1.49, 1, "linear")
    assert objective_axis([-value for value in values], Objective("y", "max")).hidden == 1
    assert objective_axis([1.0] * 50 + [2.0], MIN).hidden == 0
    decades = objective_axis([10.0**power for power in range(-5, 3)], MIN)
    assert decades.kind == "log" and decades.hidden == 0 and decades.place(1e-5) == 0 and decades.place(1e9) == 1


# --------------------------------------------------------------------------------------------------------- advice


def test_edge_of_a_range() -> None:
    rng = random.Random(3)
    drawn = [{"lr": 10 ** rng.uniform(-5, -1), "free": rng.random()} for _ in range(100)]
    ranges = {"lr": Range(1e-5, 1e-1, log=True), "free": Range(0, 1)}
    (told,) = advised(made([one["lr"] for one in drawn], drawn, ranges=ranges))
    assert re.match(
        r"\d+ of the best 10 trials have lr in the lowest 10 % of its range \(1e-05 to 0.1 was searched\)", told
    )
    assert "search below 1e-05 too" in told
    (told,) = advised(made([one["lr"] for one in drawn], drawn, Objective("y", "max"), ranges))
    assert "highest 10 %" in told and "search above 0.1 too" in told
    assert advised(made([abs(one["lr"] - 1e-3) for one in drawn], drawn, ranges=ranges)) == []
    assert advised(made([one["lr"] for one in drawn[:15]], drawn[:15], ranges=ranges)) == []  # too few


def test_edge_of_choices() -> None:
    rng = random.Random(3)
    drawn = [{"size": rng.choice((16, 32, 64, 128)), "kind": rng.choice("abcd")} for _ in range(100)]
    ranges = {"size": Range(choices=(16, 32, 64, 128)), "kind": Range(choices="abcd")}
    values = [1 / one["size"] + 1e-6 * number for number, one in enumerate(drawn)]
    told = advised(made(values, drawn, ranges=ranges))[0]
    assert "10 of the best 10 trials have size in the highest choice, 128 (16 to 128 was searched)" in told
    values = [ord(one["kind"]) + 1e-6 * number for number, one in enumerate(drawn)]
    assert not [one for one in advised(made(values, drawn, ranges=ranges)) if "have kind" in one]


def test_random_searches_are_not_advised_to_look_beyond() -> None:
    beyond = []
    for seed in range(40):
        rng = random.Random(seed)
        drawn = [{f"p{place}": rng.random() for place in range(6)} for _ in range(60)]
        record = made([rng.random() for _ in drawn], drawn, ranges={f"p{place}": Range(0, 1) for place in range(6)})
        beyond += advised(record)
    assert len(beyond) <= 2


def test_still_improving() -> None:
    falling = [[1 / (count + number + 1) for count in range(8)] for number in range(3)]
    (told,) = advised(made(falling))
    assert told.startswith(
        "Trial 2, the best, was still getting better when it ended: y 0.125 at report 6, 0.1 at report 8"
    )
    assert "3 of the best 3 trials were." in told
    flat = [[1.0, 0.5, 0.4, 0.3001, 0.3001, 0.3]]
    assert advised(made(flat)) == []
    turned = [[1.0, 0.5, 0.2, 0.1, 0.15, 0.2]]
    assert advised(made(turned)) == []


def test_failures() -> None:
    drawn = [{"kind": "abc"[number % 3], "size": number} for number in range(30)]
    record = made([float(number) for number in range(30)], drawn, ranges={"kind": Range(choices="abc")})
    trials = [
        replace(one, status="failed", reports=(), error=f"Error: out of memory at {one.number}")
        if one.parameters["kind"] == "b"
        else one
        for one in record.trials
    ]
    told = advised(replace(record, trials=tuple(trials)))[0]
    assert told.startswith("10 of 30 trials failed, all with the same error, Error: out of memory at 1.")
    assert "Failed trials only: all 10 with kind=b." in told
    assert not any("failed" in one for one in advised(replace(record, trials=(*trials[:2], *record.trials[2:]))))


def test_unimportant_parameters() -> None:
    record = made([float(number % 9) for number in range(40)], [{"a": n, "b": 0.5} for n in range(40)])
    found = Importances("y", {"a": 0.97, "b": 0.03}, {"a": 0.1, "b": 0.05}, 40)
    (told,) = [one for one in advised(record, [found]) if "chance" in one]
    assert told == (
        "b mattered no more than chance does (3 % of the importance, 40 trials). Fix it, for example b=0.5, and spend "
        "the trials on the others."
    )
    for other in (
        replace(found, trials=20),
        replace(found, chance={"a": 0.1, "b": 0.01}),
        replace(found, values={"a": 0.9, "b": 0.1}),
    ):
        assert not [one for one in advised(record, [other]) if "chance" in one]


def test_differences_within_noise() -> None:
    rng = random.Random(0)
    drawn = [{"lr": lr, "seed_everything": seed} for lr in (0.1, 0.2, 0.3) for seed in range(4)]
    noisy = [{0.1: 1.0, 0.2: 1.01, 0.3: 2.0}[one["lr"]] + 0.1 * rng.gauss(0, 1) for one in drawn]
    (told,) = [one for one in advised(made(noisy, drawn)) if "repeats" in one]
    assert "12 trials of 3 settings" in told and "first is lr=" in told and "seed" not in told.split("first is")[1]
    clear = [{0.1: 1.0, 0.2: 1.5, 0.3: 2.0}[one["lr"]] + 0.01 * rng.gauss(0, 1) for one in drawn]
    assert not [one for one in advised(made(clear, drawn)) if "repeats" in one]


def test_advice_names_nothing_for_a_good_search() -> None:
    rng = random.Random(5)
    drawn = [{"a": rng.random(), "b": rng.random()} for _ in range(60)]
    record = made([(one["a"] - 0.5) ** 2 + (one["b"] - 0.4) ** 2 for one in drawn], drawn)
    assert advice(standing_of(record), [], {path: parameter_axis([0.0, 1.0]) for path in "ab"}) == []


def test_leaderboard_of_the_page_has_short_names_and_unbroken_columns() -> None:
    (table,) = titled(search_sections(search(30)), "Leaderboard").tables
    headings = list(table.columns)
    assert headings[3:9] == [path.split(".")[-1] for path in RANGES]
    assert headings[3] == LR.split(".")[-1] and {WIDTH, OPTIMIZER, BATCH} < RANGES.keys()
    assert table.is_numeric(3)  # numbers stay in one line, however many columns there are
