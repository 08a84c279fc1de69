"""A file is what it was or what it becomes, and what a killed writer has left is taken away."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from itwinai.io.atomic import PART, part_name, remove_parts, write_whole


def test_text_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "below" / "name"
    write_whole(path, "Größe\n")
    assert path.read_bytes() == "Größe\n".encode()
    write_whole(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(path.parent.iterdir()) == [path]


def test_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "name"
    write_whole(path, "old")
    full = OSError(28, "No space left on device")

    def write_bytes(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:1])
        raise full

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_parts_of_the_dead_only(tmp_path: Path) -> None:
    """Of another process that is alive, of another machine, or of nobody: they are not ours to remove."""
    code = "import sys; from itwinai.io.atomic import part_name; print(part_name(sys.argv[1]))"
    ended = subprocess.run([sys.executable, "-c", code, "a.b.ckpt"], capture_output=True, text=True, check=True)
    dead = ended.stdout.strip()
    (tmp_path / dead).write_text("half")
    (tmp_path / f"{dead}-folder").mkdir()
    (tmp_path / f"{dead}-folder" / "model.onnx").write_text("half")
    elsewhere = dead.replace(dead.rsplit(".", 3)[1], "elsewhere")
    kept = {part_name("9.ckpt"), elsewhere, f"{PART}model.onnx", f"{PART}notes", "9.ckpt"}
    for name in kept:
        (tmp_path / name).touch()
    remove_parts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert str(os.getpid()) in part_name("9.ckpt")


def test_machines_of_one_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes write to one folder: that no process here has the number of the other one says nothing."""
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    monkeypatch.setattr(os, "getpid", lambda: int(ended.stdout))
    for node in ("node-1.site.org", "node-2.site.org"):
        monkeypatch.setattr(socket, "gethostname", lambda node=node: node)
        (tmp_path / part_name(f"of {node}")).touch()
    remove_parts(tmp_path)
    (left,) = tmp_path.iterdir()
    assert "of node-1.site.org" in left.name
