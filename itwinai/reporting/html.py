"""Sections as one page that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment

from itwinai.reporting.sections import Section


def page(title: str, sections: Sequence[Section], lead: Sequence[str] = (), about: Sequence[str] = ()) -> str:
    """Return a self-contained HTML page.

    Args:
        title: of the page.
        sections: what is on it, in this order; the advice of all of them stands above.
        lead: what was found, in a few paragraphs; they stand above the advice.
        about: what was run, when, with what, in lines below the title.
    """
    # Everything but our own pictures is text from outside: names of metrics, errors, configurations.
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("itwinai.reporting") / "page.html").read_text(encoding="utf-8"))
    advice = [(section.title, number, text) for number, section in enumerate(sections, 1) for text in section.advice]
    return template.render(title=title, about=about, lead=lead, advice=advice, sections=sections)
