"""What trials are called: by a number, which makes the name unique, and by their parameters, for people."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from itwinai.reporting.formatting import short_names
from itwinai.run_info.redaction import HIDDEN, without_secrets
from itwinai.run_info.serialization import plain

LONGEST = 80
"""Most characters of a name: file systems take 255, people and tables fewer."""

_LONGEST_LABEL, _LONGEST_VALUE = 32, 24
_FRAMES = ("init_args", "dict_kwargs", "class_path")  # parts of a path that say nothing to people
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")
_EXPONENT = re.compile(r"e([+-]?)0*(?=\d)")


def trial_name(number: int, parameters: Mapping[str, Any], among: Iterable[str] = ()) -> str:
    """Return the name of a trial, as ``007_lr=0.0012_channels=16``.

    Each parameter is called by the shortest end of its path that no other has; numbers have four significant digits.
    The name is safe as that of a file or a folder. Parameters that do not fit are counted: ``007_lr=0.0012_+5``.
    Secrets are left out.

    Args:
        number: of the trial.
        parameters: its values, by path in the config.
        among: all paths that are searched over, so that a parameter is called the same in every trial, whichever others
            it has.
    """
    labels = _labels(dict.fromkeys([*parameters, *among]))
    values = {
        path: _value_label(path, value) for path, value in without_secrets(plain(parameters)).items() if value != HIDDEN
    }
    parts = [f"_{labels[path]}={value}" for path, value in values.items()]
    start = f"{number:03d}"
    for fitting in range(len(parts), -1, -1):
        more = "" if fitting == len(parts) else f"_+{len(parts) - fitting}"
        name = "".join([start, *parts[:fitting], more])
        if len(name) <= LONGEST:
            break
    return name


def _labels(paths: Iterable[str]) -> dict[str, str]:
    shortened = {path: ".".join(part for part in path.split(".") if part not in _FRAMES) or path for path in paths}
    is_clear = len(set(shortened.values())) == len(shortened)
    known = {path: shortened[path] if is_clear else path for path in shortened}
    short = short_names(list(known.values()))
    return {path: _safe(short[name])[-_LONGEST_LABEL:] for path, name in known.items()}


def _value_label(path: str, value: Any) -> str:
    if path.endswith("class_path") and isinstance(value, str):
        value = value.rpartition(".")[2]
    return _safe(_text(value))[:_LONGEST_VALUE].rstrip(".-") or "empty"


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)  # as a config has them
    if isinstance(value, float):
        return _EXPONENT.sub(lambda found: f"e{found[1].replace('+', '')}", f"{value:.4g}")
    if isinstance(value, list):
        return "-".join(map(_text, value))
    if isinstance(value, dict):
        class_path = value.get("class_path")
        return (
            str(class_path).rpartition(".")[2] if class_path else "-".join(f"{k}-{_text(v)}" for k, v in value.items())
        )
    return str(value)


def _safe(text: str) -> str:
    return _UNSAFE.sub("-", text)
