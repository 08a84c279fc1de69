"""Values in job scripts, so that nothing in them is executed and all of it arrives."""

from __future__ import annotations

import re

from itwinai.errors import ConfigurationError

LONGEST = 8000
"""Characters of a line ``#SBATCH``: sbatch reads it into a buffer of 8192."""

_PLAIN = re.compile(r"[A-Za-z0-9_@%+:,./-][A-Za-z0-9_@%+=:,./-]*")
_PUNCTUATION = set(' !"#%&()*+,-./:;<=>?@[]^_{|}~')


def bash_word(text: str) -> str:
    """Return a text as one word of bash, whatever is in it.

    Args:
        text: any text without NUL, which no argument of a program can hold.
    """
    if _PLAIN.fullmatch(text):
        return text
    if all(character.isalnum() or character in _PUNCTUATION for character in text):
        return f"'{text}'"
    # Bytes, because what \u stands for depends on the locale of the job.
    return f"$'{''.join(_ansi_c(character) for character in text)}'"


def bash_words(words: list[str] | tuple[str, ...]) -> str:
    """Return several texts as words of bash with spaces between."""
    return " ".join(bash_word(word) for word in words)


def sbatch_line(name: str, value: str | None) -> str:
    """Return a line ``#SBATCH`` of a script.

    Args:
        name: of the option, without dashes.
        value: None for an option without a value.

    Raises:
        ConfigurationError: such a line cannot hold the value.
    """
    flag = f"-{name}" if len(name) == 1 else f"--{name}"
    if value is None:
        return f"#SBATCH {flag}"
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise ConfigurationError(
            f"The value of sbatch's option {name} holds a line break or another control character, which a line of a "
            f"job script cannot hold: {value!r}. Remove it.",
            argument=name,
        )
    if len(value.encode("utf-8", "surrogateescape")) > LONGEST:
        raise ConfigurationError(
            f"The value of sbatch's option {name} has {len(value)} characters; sbatch reads at most {LONGEST} from a "
            "line of a script. Shorten it.",
            argument=name,
        )
    joined = " " if len(name) == 1 else "="
    if _PLAIN.fullmatch(value):
        return f"#SBATCH {flag}{joined}{value}"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'#SBATCH {flag}{joined}"{escaped}"'


def _ansi_c(character: str) -> str:
    if character.isalnum() or (character in _PUNCTUATION and character != "?"):
        return character
    named = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\", "'": "\\'"}
    if character in named:
        return named[character]
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
