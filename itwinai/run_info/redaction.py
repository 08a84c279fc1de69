"""Keep secrets out of what is logged and saved: by the names of values, by their shapes, and by this environment."""

from __future__ import annotations

import argparse
import copy
import os
import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from itwinai.run_info.secret_names import is_secret_name

HIDDEN = "***"
"""What stands in the place of a secret."""

_SHORTEST_IN_ENVIRONMENT = 8  # shorter values, as "test", would be found in words that are none
_PLACES = ("PWD", "OLDPWD")  # of the shell: the working folder, not a password
_NO_VALUE = ("", "none", "null", "true", "false")

_QUOTED = r""" "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' | (?P<quote>\\+["'])(?:.{0,4096}?)(?P=quote) """
_VALUE = re.compile(
    rf"""{_QUOTED}
    | (?: (?:Bearer|Basic|Token|Digest|Negotiate|ApiKey) [ \t]+ )?
      [^\s&;]+? (?= ["',)}}\]\\]{{0,9}} (?:[\s&;]|\Z) )    # closing brackets and commas at the end are not the value's
    """,
    re.X | re.S | re.I,
)
_ASSIGNED = re.compile(
    r"""(?<![\w.\-/]) (?P<name>[\w.\-/]+) \\{0,9}["']? [ \t]{0,9} (?: [:=]= | => | = | :(?!//) ) [ \t]*""", re.X
)
_FLAG = re.compile(r"(?<![\w\-])(?P<name>--?[A-Za-z][\w.\-/]*)[ \t]+(?!-)")
_ARGUMENT = re.compile(r"(?P<name>--?[A-Za-z][\w.\-/]*)(?P<sign>=?)(?P<value>.*)", re.S)

_URL_LOGIN = re.compile(r"""(?P<scheme>(?<![a-z0-9+.\-])[a-z][a-z0-9+.\-]*)://(?P<login>[^\s/?#"'<>]*)@""", re.I)
_URL_SIGNATURE = re.compile(r"""(?P<start>[?&](?:x-\w+-)?sig(?:nature)?=)(?P<value>[^\s&#"']+)""", re.I)
_HEADER = re.compile(
    rf"""(?P<start> \b (?: authorization | cookie ) \\*["']? [ \t]* : [ \t]* )
    (?P<value> {_QUOTED} | ["']? [^"'\n]+ (?: (?<==) "[^"\n]*" [^"'\n]* )* )""",
    re.X | re.S | re.I,
)
_BEARER = re.compile(r"(?P<start>\bBearer[ \t]+)(?P<value>[\w.~+/=\-]{8,})", re.I)
_KNOWN_SHAPE = re.compile(
    r"""(?<![A-Za-z0-9]) (?:
        hf_[A-Za-z0-9]{16,}                                 # Hugging Face
      | gh[pousr]_[A-Za-z0-9]{16,} | github_pat_\w{16,}     # GitHub
      | gl(?:pat|dt|rt|cbt|ptt|agent)-[\w.\-]{16,}          # GitLab
      | sk-(?=[\w\-]{0,200}\d)[\w\-]{16,}                   # OpenAI and others
      | xox[a-z]-[\w\-]{10,} | xapp-[\w\-]{10,}             # Slack
      | (?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])            # AWS
      | AIza[\w\-]{35}                                      # Google
      | wandb_v\d_\w{16,}                                   # Weights & Biases
      | pypi-[\w\-]{32,} | npm_[A-Za-z0-9]{30,}
      | eyJ[\w\-]{8,999}\.eyJ[\w\-]{8,9999}\.[\w\-]*        # JSON web tokens
      | -----BEGIN\ [A-Z\ ]{0,40}PRIVATE\ KEY-----.*?(?:-----END\ [A-Z\ ]{0,40}PRIVATE\ KEY-----|\Z)
    )""",
    re.X | re.S,
)


def without_secrets(value: Any) -> Any:
    """Return a copy of nested values in which ``"***"`` stands for every secret.

    Hidden are strings under a name that tells of a secret (see `is_secret_name`), and in all other strings: logins
    in URLs, what follows such a name (``?token=...``, ``--api-key ...``, ``"password": ...``, ``Authorization: ...``),
    tokens whose shape is well known, and the values of this process's environment variables with such names.

    Args:
        value: nested mappings, sequences, sets and namespaces of anything. It is not changed. Strings and bytes are
            looked at; numbers, paths and objects of other classes stay as they are.

    Returns:
        The copy, with the same classes of containers. None and empty strings stay.
    """
    return _Cleaner(_secrets_of_environment()).clean(value)


def _secrets_of_environment() -> list[str]:
    found = {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST_IN_ENVIRONMENT and name not in _PLACES and is_secret_name(name)
    }
    # Some of these variables hold the path of a file with the secret.
    return sorted((value for value in found if not os.path.exists(value)), key=len, reverse=True)


class _Cleaner:
    """Walks through nested values.

    Args:
        known: secrets that are hidden wherever they stand; a longer one before those that are in it.
    """

    def __init__(self, known: list[str]) -> None:
        self.known = known

    def clean(self, value: Any) -> Any:
        """Return a copy in which secrets are hidden."""
        if isinstance(value, str):
            return _same_or(value, self._clean_text(value))
        if isinstance(value, bytes):
            text = value.decode("utf-8", "surrogateescape")
            return _same_or(value, self._clean_text(text).encode("utf-8", "surrogateescape"))
        if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
            return _rebuilt(value, self._clean_sequence(value))
        return self._walk(value, self.clean)

    def hide(self, value: Any) -> Any:
        """Return a copy in which every string is hidden, but for names in mappings."""
        if isinstance(value, str):
            return value if value.strip().lower() in _NO_VALUE else HIDDEN
        if isinstance(value, bytes):
            return HIDDEN.encode() if value else value
        return self._walk(value, self.hide)

    def _walk(self, value: Any, visit: Callable[[Any], Any]) -> Any:
        """Return a copy of a container with its items visited; anything else as it is."""

        def visit_under(name: Any, item: Any) -> Any:
            return self.hide(item) if isinstance(name, str) and is_secret_name(name) else visit(item)

        if isinstance(value, argparse.Namespace | SimpleNamespace):
            copied = copy.copy(value)
            vars(copied).update({name: visit_under(name, item) for name, item in vars(value).items()})
            return copied
        if isinstance(value, Mapping):
            items = {self.clean(name): visit_under(name, item) for name, item in value.items()}
            return _rebuilt_mapping(value, items)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(visit_under(name, item) for name, item in zip(value._fields, value, strict=True)))
        if isinstance(value, list | tuple | set | frozenset):
            return _rebuilt(value, [visit(item) for item in value])
        return value

    def _clean_sequence(self, items: list[Any] | tuple[Any, ...]) -> list[Any]:
        """Clean items, which may be the arguments of a command line."""
        cleaned: list[Any] = []
        is_announced = False  # by the flag before
        for item in items:
            argument = _ARGUMENT.fullmatch(item) if isinstance(item, str) else None
            tells = argument is not None and is_secret_name(argument["name"])
            if is_announced and argument is None:
                cleaned.append(self.hide(item))
            elif argument is not None and tells and argument["sign"]:
                cleaned.append(f"{argument['name']}={_hidden(argument['value'])}")
            else:
                cleaned.append(self.clean(item))
            is_announced = argument is not None and tells and not argument["sign"] and not argument["value"]
        return cleaned

    def _clean_text(self, text: str) -> str:
        for secret in self.known:
            text = text.replace(secret, HIDDEN)
        text = _KNOWN_SHAPE.sub(HIDDEN, text)
        text = _URL_LOGIN.sub(_without_login, text)
        for pattern in (_URL_SIGNATURE, _HEADER, _BEARER):
            text = pattern.sub(lambda found: found["start"] + _hidden(found["value"]), text)
        return _hide_after(_FLAG, _hide_after(_ASSIGNED, text))


def _without_login(found: re.Match[str]) -> str:
    user, colon, password = found["login"].partition(":")
    if colon:
        login = f"{user}:{_hidden(password)}"
    else:  # a name alone is that of an account, as in ssh://git@..., but in the web it mostly is a token
        login = _hidden(user) if found["scheme"].lower().startswith("http") and user != "git" else user
    return f"{found['scheme']}://{login}@"


def _hide_after(announcement: re.Pattern[str], text: str) -> str:
    """Hide the values that follow a telling name."""
    parts, done = [], 0
    for found in announcement.finditer(text):
        if found.start() >= done and is_secret_name(found["name"]) and (value := _VALUE.match(text, found.end())):
            parts += [text[done : found.end()], _hidden(value[0])]
            done = value.end()
    return "".join(parts) + text[done:]


def _hidden(text: str) -> str:
    """Hide a value, but for its quotes; the words for no value stay."""
    quote = re.match(r"""\\*["']""", text)
    mark = quote[0] if quote and len(text) >= 2 * len(quote[0]) and text.endswith(quote[0]) else ""
    inner = text[len(mark) : len(text) - len(mark)]
    return text if inner.strip().lower() in _NO_VALUE else mark + HIDDEN + mark


def _rebuilt(original: Any, items: list[Any]) -> Any:
    """Return items in a container of the same class, or of the built-in class below it."""
    try:
        return type(original)(items)
    except TypeError:
        return next(base for base in (list, tuple, set, frozenset) if isinstance(original, base))(items)


def _rebuilt_mapping(original: Mapping[Any, Any], items: dict[Any, Any]) -> Mapping[Any, Any]:
    if type(original) is dict:
        return items
    if isinstance(original, dict):
        copied = copy.copy(original)  # with what a defaultdict or another subclass has beside its items
        copied.clear()
        copied.update(items)
        return copied
    try:
        return type(original)(items)  # type: ignore[call-arg]
    except TypeError:
        return items


def _same_or(original: Any, cleaned: Any) -> Any:
    return original if cleaned == original else cleaned
