"""Read the file of an offline W&B run: records of W&B's protocol in blocks of LevelDB's log format."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_BLOCK, _FILE_HEADER = 32_768, 7
_HEAD = struct.Struct("<IHB")  # checksum, length, kind
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass(frozen=True)
class OfflineRun:
    """What is in the file.

    Attributes:
        run: W&B's record of the run.
        history: the logged rows.
    """

    run: Any
    history: list[dict[str, Any]]


def read(path: Path) -> OfflineRun:
    """Read an offline run."""
    run, history = None, []
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
        elif kind == "history":
            items = record.history.item
            history.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    assert run is not None, path
    return OfflineRun(run, history)


def _records(content: bytes) -> Iterator[bytes]:
    position, parts = _FILE_HEADER, b""
    while position < len(content):
        left = _BLOCK - position % _BLOCK
        if left < _HEAD.size:  # padding
            position += left
            continue
        _, length, kind = _HEAD.unpack_from(content, position)
        position += _HEAD.size
        parts += content[position : position + length]
        position += length
        if kind in (_WHOLE, _LAST):
            yield parts
            parts = b""
        assert kind in (_WHOLE, _FIRST, _MIDDLE, _LAST)
