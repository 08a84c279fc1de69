"""What stands where on the page of a run."""

from __future__ import annotations

import re

from itwinai.reporting.html import page
from itwinai.reporting.sections import Picture, Section, Table

SECTIONS = [
    Section("Run", {"run": "a <module>"}, [Table(("a", "b"), [("1", "2")], "Numbers")]),
    Section("System", pictures=[Picture("CPU", "<svg></svg>")], advice=["Use <fewer> workers."]),
    Section("Training step", {"step": "1 ms"}, advice=["Read ahead.", "Log less."]),
]


def test_advice_of_all_sections_stands_before_everything_else() -> None:
    text = page("title", SECTIONS)
    places = [
        text.index(words) for words in ("Use &lt;fewer&gt; workers.", "Read ahead.", "Log less.", "a &lt;module&gt;")
    ]
    assert places == sorted(places)
    assert places[-1] < text.index("<table>") and places[-1] < text.index("<svg>")
    assert text.count("Read ahead.") == 1
    assert 'Read ahead. <a href="#s3">Training step</a>' in text and '<section id="s3">' in text


def test_without_advice_nothing_stands_for_it() -> None:
    assert 'class="advice"' not in page("title", SECTIONS[:1])


def test_lead_stands_above_the_advice() -> None:
    text = page("title", SECTIONS, ["Take <ddp>.", "It is all."])
    places = [text.index(words) for words in ("</header>", "Take &lt;ddp&gt;.", "It is all.", "What could be better")]
    assert places == sorted(places)
    assert '<section id="lead">' not in page("title", SECTIONS)


def test_copied_text_has_spaces_between_names_and_values() -> None:
    table = Table(("what", "value"), [("data.batch_size", "64")], "Settings")
    text = page("title", [Section("Settings", {"data.batch_size": "64"}, [table])])
    plain = re.sub(r"<[^>]*>", "", text)
    assert plain.count("data.batch_size 64") == 2 and "what value" in plain
