"""A Sphinx extension: ``<!-- every command -->`` in a page becomes every flag of every command, from its parser."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from command_parsers import LIGHTNING, parsers
from sphinx.application import Sphinx

from itwinai.cli.fit import short_help

PLACE = "<!-- every command -->"


def reference() -> str:
    """Return a section of MyST text for each command."""
    found = parsers()
    sections = []
    for name, parser in found.items():
        level = "#" * (2 + name.count(" "))
        sections.append(f"{level} itwinai {name}")
        if name in LIGHTNING:
            sections.append(_code(short_help(name)))
            sections.append(_all_of_lightning(parser, found["fit"] if name != "fit" else None))
        else:
            sections += _of_argparse(parser)
    return "\n\n".join(sections) + "\n"


def _of_argparse(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield _code(textwrap.dedent(parser.format_usage().removeprefix("usage: ")))
    if parser.description:
        yield _prose(parser.description)
    for group in parser._action_groups:
        shown = [action for action in group._group_actions if _is_shown(action)]
        if shown:
            if group.title not in ("options", "positional arguments"):
                yield f"**{_escaped(str(group.title))}**"
            yield _definitions(shown, parser)
    if parser.epilog:
        yield _code(parser.epilog)


def _all_of_lightning(parser: argparse.ArgumentParser, fit: argparse.ArgumentParser | None) -> str:
    """Return the long list, folded; of `validate`, `test` and `predict` what `fit` does not have."""
    known = {action.dest for action in fit._actions} if fit else set()
    shown = [action for action in parser._actions if _is_shown(action) and action.dest not in known]
    shown = [action for action in shown if not action.dest.endswith(".help")]
    listed = _definitions(shown, parser)
    return (
        f"All flags of `itwinai fit`, and:\n\n{listed}"
        if fit
        else f"Every flag, which are also the keys of a config:\n\n{listed}"
    )


def _is_shown(action: argparse.Action) -> bool:
    return action.help != argparse.SUPPRESS and not isinstance(
        action, (argparse._HelpAction, argparse._SubParsersAction)
    )


def _definitions(actions: Iterable[argparse.Action], parser: argparse.ArgumentParser) -> str:
    return "\n\n".join(f"{_flags(action)}\n: {_help(action, parser)}" for action in actions)


def _flags(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    names = [name for name in action.option_strings if not name.endswith("+")]
    value = ""
    if action.nargs != 0:
        choices = ",".join(map(str, action.choices)) if action.choices else ""
        shown = action.metavar or (f"{{{choices}}}" if choices else action.dest.rpartition(".")[2].upper())
        value = " " + (shown if isinstance(shown, str) else " ".join(shown)).replace("\b", "")
        if action.nargs == "?":
            value = f" [{value.strip()}]"
    return ", ".join(f"`{name}{value if name == names[-1] else ''}`" for name in names)


def _help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    if getattr(action, "_typehint", None) is None and not action.dest.startswith("trainer."):
        text = parser._get_formatter()._expand_help(action) if action.help else ""
        return _prose(re.sub(r"\s*\(type: .*", "", text)) or "—"
    text = _prose(" ".join((action.help or "").split()))
    default: Any = action.default
    if default in (None, argparse.SUPPRESS) or "by default" in text.lower():
        return text
    return f"{text} Default: `{default}`."


def _prose(text: str) -> str:
    """Return what a docstring or a help text says as Markdown: code in backticks stays, all else is literal."""
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text.strip()).replace("``", "`")
    parts = re.split(r"(`[^`]+`)", text)
    joined = "".join(part if part.startswith("`") else _escaped(part) for part in parts)
    return "\n\n".join(" ".join(block.split()) for block in joined.split("\n\n"))


def _escaped(text: str) -> str:
    return re.sub(r"([*_<>\[\]{}#|$\\~])", r"\\\1", text)


def _code(text: str) -> str:
    return f"```text\n{text.strip()}\n```"


def fill(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the reference into the page that asks for it."""
    if PLACE in source[0]:
        source[0] = source[0].replace(PLACE, reference())


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to Sphinx."""
    app.connect("source-read", fill)
    return {"parallel_read_safe": True}
