"""What Ray Tune keeps in the place of a checkpoint: where it is.

A checkpoint is written once, by rank 0, to where it stays. Ray would copy its files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

REFERENCE = "itwinai-checkpoint.json"


def write_reference(folder: str, checkpoint: str) -> None:
    """Write where a checkpoint is into a folder that Ray keeps in its place."""
    Path(folder, REFERENCE).write_text(json.dumps({"checkpoint": checkpoint}))


def read_reference(folder: str) -> str | None:
    """Return the path of the checkpoint that a folder of Ray's refers to; None if it is not one of ours."""
    path = Path(folder, REFERENCE)
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    return str(content["checkpoint"])
