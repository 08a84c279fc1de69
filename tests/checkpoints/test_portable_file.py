"""A checkpoint file verifies, or it does not exist; nothing is executed from it."""

from __future__ import annotations

import math
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from itwinai.checkpoints import portable_file
from itwinai.checkpoints.discovery import newest_valid
from itwinai.errors import CheckpointError, DamagedCheckpointError, UnsafeCheckpointError
from itwinai.io.atomic import PART, remove_parts
from tests.conftest import REPOSITORY

ABOUT = {"global_step": 3, "resumable": True, "versions": {"itwinai": "0"}}


def content(step: int = 0, values: int = 1000) -> dict[str, Any]:
    return {"state_dict": {"weight": torch.full((values,), float(step))}, "global_step": step}


def written(folder: Path, step: int = 0, values: int = 1000) -> Path:
    path = folder / f"{step}.ckpt"
    portable_file.write(content(step, values), path, {**ABOUT, "global_step": step}, written_at=100.0 + step)
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, 7)
    assert torch.equal(portable_file.read(path)["state_dict"]["weight"], torch.full((1000,), 7.0))
    assert torch.equal(torch.load(path, mmap=True)["state_dict"]["weight"], torch.full((1000,), 7.0))
    manifest = portable_file.verify(path)
    assert manifest is not None and manifest == portable_file.read_manifest(path)
    assert (manifest.about, manifest.written_at) == ({**ABOUT, "global_step": 7}, 107.0)
    assert os.listdir(tmp_path) == ["7.ckpt"]


def test_remote_path() -> None:
    portable_file.write(content(2), "memory://folder/a.ckpt", ABOUT, written_at=0.0)
    assert portable_file.read("memory://folder/a.ckpt")["global_step"] == 2
    assert list(fsspec.filesystem("memory").find("/folder")) == ["/folder/a.ckpt"]
    assert newest_valid(["memory://folder"]) == "memory:///folder/a.ckpt"


@pytest.mark.parametrize("seed", range(4))
def test_flipped_byte_is_found_wherever_it_is(seed: int, tmp_path: Path) -> None:
    path = written(tmp_path, values=50)
    whole = path.read_bytes()
    step = 7  # all of a file takes long; four offsets of every seventh byte see the more interesting half
    for place in range(seed, len(whole), step):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << random.Random(place).randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            portable_file.read(path)


def test_cut_off_file_is_found_wherever_it_is_cut(tmp_path: Path) -> None:
    path = written(tmp_path, values=50)
    whole = path.read_bytes()
    for length in range(0, len(whole), 11):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedCheckpointError):
            portable_file.read(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(DamagedCheckpointError):
        portable_file.read(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "it is empty"), (b"some text", "it is not a file that torch.save has written")],
)
def test_file_of_another_kind(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(data)
    with pytest.raises(DamagedCheckpointError, match=message):
        portable_file.read(tmp_path / "a.ckpt")


def test_other_version_of_the_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(portable_file, "FORMAT", portable_file.FORMAT + 1)
        path = written(tmp_path)
    with pytest.raises(
        CheckpointError, match=f"has format {portable_file.FORMAT + 1} .* reads format {portable_file.FORMAT}"
    ):
        portable_file.read(path)


class Executes:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_nothing_is_executed(tmp_path: Path) -> None:
    path, trace = tmp_path / "a.ckpt", tmp_path / "trace"
    portable_file.write({"x": Executes(str(trace))}, path, ABOUT, written_at=0.0)
    with pytest.raises(UnsafeCheckpointError, match=r"posix.mkdir.*weights_only=False") as caught:
        portable_file.read(path)
    assert caught.value.types == ["posix.mkdir"]
    assert not trace.exists()
    portable_file.read(path, weights_only=False)
    assert trace.exists()  # the file would have
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Executes(str(tmp_path / "other"))))
    with pytest.raises(DamagedCheckpointError):
        portable_file.read(tmp_path / "plain.ckpt", weights_only=False)
    assert not (tmp_path / "other").exists()


def test_files_of_others(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(content(5), path)
    assert portable_file.verify(path) is None
    assert portable_file.read(path)["global_step"] == 5
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DamagedCheckpointError):
        portable_file.read(path)


def test_newest_valid_passes_over_damaged_ones(tmp_path: Path) -> None:
    paths = [written(tmp_path, step) for step in range(4)]
    (tmp_path / "empty.ckpt").touch()
    (tmp_path / f"{PART}9.ckpt").write_bytes(b"half")
    damaged = bytearray(paths[3].read_bytes())
    damaged[500] ^= 1
    paths[3].write_bytes(damaged)
    with pytest.warns(UserWarning, match=r"skipped: .*3.ckpt is damaged"):
        assert newest_valid([str(tmp_path)]) == str(paths[2])
    assert newest_valid([str(tmp_path)], since=102.5) is None
    assert newest_valid([str(tmp_path / "nothing")]) is None


def test_newest_valid_passes_over_parameters_that_are_not_finite(tmp_path: Path) -> None:
    for step, weight in enumerate((1.0, 2.0, math.nan, -math.inf)):
        weights = {"net.weight": torch.tensor([1.0, weight]), "mask": torch.tensor([-math.inf])}
        whole = {**content(step), "state_dict": weights}
        portable_file.write(whole, tmp_path / f"{step}.ckpt", ABOUT, written_at=100.0 + step)
    with pytest.warns(UserWarning, match=r"NaN or infinite: \S*3.ckpt, \S*2.ckpt\. The newest .* \S*1.ckpt \(epoch"):
        assert newest_valid([str(tmp_path)], parameters=["net.weight", "sharded"]) == str(tmp_path / "1.ckpt")
    with pytest.warns(UserWarning, match=r"All checkpoints hold parameters that are NaN or infinite.*3\.ckpt"):
        assert newest_valid([str(tmp_path)], since=102, parameters=["net.weight"]) == str(tmp_path / "3.ckpt")


def test_failed_write_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path)

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space left"):
            portable_file.write(content(1), path, ABOUT, written_at=0.0)
    assert portable_file.read(path)["global_step"] == 0
    assert os.listdir(tmp_path) == ["0.ckpt"]


WRITER = """
import sys
from tests.checkpoints.test_portable_file import Path, written
folder = Path(sys.argv[1])
for step in range(int(sys.argv[2]), 10**9):
    written(folder, step, values=500_000)
    (folder / f"{step - 3}.ckpt").unlink(missing_ok=True)
    print(step, flush=True)
"""

KILLS = 50


def test_writer_killed_at_random_moments(tmp_path: Path) -> None:
    """The writer is forked off one process, as an import takes longer than many saves."""
    random.seed(1)
    step = 0
    writer = _Writers(tmp_path)
    try:
        for _ in range(KILLS):
            step = writer.kill_one(step, random.random() * 0.03)
            newest = newest_valid([str(tmp_path)])
            assert newest is not None
            loaded = portable_file.read(newest)
            # What was reported as written is there; the next one may be.
            assert loaded["global_step"] in (step, step + 1)
            assert torch.equal(loaded["state_dict"]["weight"], torch.full((500_000,), float(loaded["global_step"])))
            step = loaded["global_step"] + 1
        assert any(tmp_path.glob(f"{PART}*")), "no writer was killed in the midst of a save"
        remove_parts(tmp_path)
        assert not any(tmp_path.glob(f"{PART}*"))
    finally:
        writer.close()


class _Writers:
    """Processes that write one checkpoint after the other, each killed by SIGKILL."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        code = (
            "import os, sys\n"
            "sys.argv = ['', sys.argv[1], '0']\n"
            "import tests.checkpoints.test_portable_file\n"
            f"code = {WRITER!r}\n"
            "for line in sys.stdin:\n"
            "    sys.argv[2] = line.strip()\n"
            "    pid = os.fork()\n"
            "    if pid == 0:\n"
            "        exec(code)\n"
            "    print('pid', pid, flush=True)\n"
            "    os.waitpid(pid, 0)\n"
            "    print('ended', flush=True)\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def kill_one(self, first: int, after: float) -> int:
        """Let one write from a step on, kill it some time after a save was finished; return the last finished step."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(first, file=self.process.stdin, flush=True)
        pid, last, killed = 0, None, False
        for line in self.process.stdout:
            words = line.split()
            if words[0] == "pid":
                pid = int(words[1])
            elif words[0] == "ended":
                break
            else:
                last = int(words[0])
            if pid and last is not None and not killed:
                killed = True
                time.sleep(after)  # the moment of the kill itself; nothing is waited for
                os.kill(pid, signal.SIGKILL)
        assert last is not None
        return last

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
