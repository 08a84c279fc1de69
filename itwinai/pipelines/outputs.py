"""What steps return: plain values and paths, as they are kept, compared and handed to other steps."""

from __future__ import annotations

import dataclasses
import enum
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from itwinai.errors import ConfigurationError, PipelineError, did_you_mean
from itwinai.io.versioned_json import finite
from itwinai.pipelines.content_hash import ABSENT, ContentHasher, digest_of

_MARK = "itwinai-output-folder"

OutputFolder = Annotated[Path, _MARK]
"""Type of an argument in which a step gets an empty folder of its own for the files that it writes.

The folder appears under its name when the step has ended, with all files, or not at all.
"""

KEPT_TYPES: tuple[type, ...] = (
    *(type(None), bool, int, float, str, enum.Enum, os.PathLike),
    *(Mapping, list, tuple, set),
)
"""What steps may return, beside dataclasses, NamedTuples, and arrays and tensors of a single number."""

KEPT = (
    "Steps return paths, numbers, texts, and lists, mappings, dataclasses or NamedTuples of them: write the object to "
    "a file in the step's OutputFolder, and return its path."
)

_PATH, _TEXT = "$path", "$text"


def is_output_folder(hint: Any) -> bool:
    """Return whether a type hint is `OutputFolder`."""
    return _MARK in getattr(hint, "__metadata__", ())


def encode(value: Any, part: Path, step: str) -> Any:
    """Return what a step has returned as plain values.

    Args:
        value: what it has returned.
        part: its folder; paths in it are kept relative to it.
        step: its name, for errors.

    Raises:
        PipelineError: something is neither a plain value nor a path, or a path does not exist.
    """
    return _encode(value, part, f"steps.{step}")


def _encode(value: Any, part: Path, where: str) -> Any:
    if hasattr(value, "_asdict"):
        value = value._asdict()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    elif isinstance(value, enum.Enum):
        value = value.value
    elif not isinstance(value, (str, bytes, Path)) and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()  # of numpy, or of a tensor
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        inside = os.path.isabs(value) and Path(value).is_relative_to(part)
        return {_TEXT: str(Path(value).relative_to(part))} if inside else value
    if isinstance(value, os.PathLike):
        path = Path(value)
        if not path.exists():
            raise PipelineError(
                f"{where} returned the path {path}, at which there is nothing. Write the file before you return its "
                "path."
            )
        inside = path.absolute().is_relative_to(part)
        return {_PATH: str(path.absolute().relative_to(part)) if inside else str(path), "inside": inside}
    if isinstance(value, Mapping):
        return {str(name): _encode(one, part, f"{where}.{name}") for name, one in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_encode(one, part, f"{where}.{number}") for number, one in enumerate(value)]
    raise PipelineError(f"{where} returned a {type(value).__module__}.{type(value).__qualname__}. {KEPT}")


def decode(value: Any, folder: Path) -> Any:
    """Return what a step has returned from its plain values; paths are in its folder as it is now."""
    if isinstance(value, list):
        return [decode(one, folder) for one in value]
    if not isinstance(value, dict):
        return value
    if _TEXT in value:
        return str(folder / value[_TEXT])
    if _PATH in value:
        return folder / value[_PATH] if value["inside"] else Path(value[_PATH])
    return {name: decode(one, folder) for name, one in value.items()}


def content_of(value: Any, folder: Path, hasher: ContentHasher, leave_out: str) -> Any:
    """Return plain values in which the content of files stands in the place of their paths.

    Args:
        value: as `encode` has returned it.
        folder: of the step.
        hasher: digests of files.
        leave_out: name of a file of the folder that does not count.
    """
    if isinstance(value, list):
        return [content_of(one, folder, hasher, leave_out) for one in value]
    if not isinstance(value, dict):
        return value
    if _TEXT in value:
        return [hasher.digest(folder / value[_TEXT], leave_out), value[_TEXT]]
    if _PATH in value:
        path = folder / value[_PATH] if value["inside"] else Path(value[_PATH])
        return [hasher.digest(path, leave_out), value[_PATH]]
    return {name: content_of(one, folder, hasher, leave_out) for name, one in value.items()}


def missing_in(value: Any, folder: Path, hasher: ContentHasher) -> list[str]:
    """Return the paths among plain values that do not exist any more."""
    if isinstance(value, list):
        return [path for one in value for path in missing_in(one, folder, hasher)]
    if not isinstance(value, dict):
        return []
    if _TEXT in value or _PATH in value:
        path = decode(value, folder)
        return [] if hasher.digest(Path(path)) != ABSENT else [str(path)]
    return [path for one in value.values() for path in missing_in(one, folder, hasher)]


def pick(value: Any, output: str, step: str) -> Any:
    """Return an output of a step.

    Args:
        value: all that the step has returned.
        output: names with dots between; empty for all.
        step: name of the step, for errors.

    Raises:
        ConfigurationError: there is no such output.
    """
    node = value
    for name in output.split(".") if output else ():
        if isinstance(node, list) and name.isdigit() and int(name) < len(node):
            node = node[int(name)]
        elif isinstance(node, dict) and name in node and _PATH not in node and _TEXT not in node:
            node = node[name]
        else:
            there = list(node) if isinstance(node, dict) and _PATH not in node and _TEXT not in node else []
            raise ConfigurationError(
                f"the step '{step}' has no output '{output}'.{did_you_mean(name, there)} "
                + (f"Its outputs are {', '.join(map(str, there))}." if there else "It returns a single value.")
            )
    return node


def digest_of_values(value: Any) -> str:
    """Return the digest of plain values."""
    return digest_of(json.dumps(finite(value), sort_keys=True))
