"""Values as plain ones, which JSON and YAML can hold."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any

from itwinai.run_info.redaction import without_secrets


def plain_hyperparameters(params: Any) -> dict[str, Any]:
    """Return hyperparameters as dictionaries, lists, texts and numbers, without secrets.

    Args:
        params: a mapping or a namespace of anything, or None. Of what is not a plain value, its name or text is taken.
    """
    found: dict[str, Any] = without_secrets(plain({} if params is None else params))
    return found


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it, but for numbers that are not finite."""
    if isinstance(value, argparse.Namespace):
        as_dict = getattr(value, "as_dict", None)  # jsonargparse's: it knows by which names the user knows its values
        value = vars(value) if as_dict is None else as_dict()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif not isinstance(value, bool | int | float | str) and callable(getattr(value, "item", None)):
        value = number_of(value)
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, str):
        return str.__str__(value)  # an enumeration that is a text as well would give its name
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return float(value) if isinstance(value, float) else int(value)
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return f"{value.__module__}.{value.__qualname__}"
    return str(value)


def number_of(value: Any) -> Any:
    """Return the number in a tensor or a number of NumPy, the nested lists of one with several, or else the value."""
    try:
        return value.item()
    except (TypeError, ValueError, RuntimeError):  # several elements
        return value.tolist() if hasattr(value, "tolist") else value
