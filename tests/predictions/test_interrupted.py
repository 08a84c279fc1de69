"""A prediction that is killed anywhere is resumed, also with other workers: nothing twice, nothing missing."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from itwinai.predictions.joined import verify
from tests.conftest import assert_no_process_left, start_script
from tests.predictions.interrupted import SAMPLES, predict


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of the files that a single process writes, by their endings."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for ending in ENDINGS:
        predict(folder / f"p{ending}", "auto", 1)
    return {ending: verify(folder / f"p{ending}").sha256 for ending in ENDINGS}


ENDINGS = (".parquet", ".zarr", ".safetensors")


def wait(process: Any, condition: Callable[[], bool]) -> bool:
    """Wait until something is so; return False if the process ends before."""
    while not condition():
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    return True


def kill(caller: int, chance: random.Random) -> None:
    """Kill a worker, the caller, or all at once."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(caller)
        workers = process.children(recursive=True)
        victims = chance.choice([workers[:1], workers[1:2], [process], [process, *workers]]) or [process]
        for victim in victims:
            victim.kill()


KILLS = 6
"""Of each file at most; the last two while it is joined, if they come so late."""


def attempt(number: int, output: Path, chance: random.Random, log: Path) -> tuple[int | None, bool]:
    """Predict once, and perhaps kill it on the way; return the exit code, and whether it was killed."""
    partial = output.with_name(f"{output.name}.partial")
    shards = len(list(partial.glob("*.arrow"))) + chance.randint(0, 9)

    def is_time() -> bool:
        if number >= KILLS - 2:
            return any(output.parent.glob(".part-*"))
        return partial.exists() and len(list(partial.glob("*.arrow"))) >= shards

    workers = str(chance.choice([1, 2, 3]))
    process = start_script(["tests/predictions/interrupted.py", str(output), "ddp", workers], log)
    killed = number < KILLS and wait(process, is_time)
    if killed:
        kill(process.pid, chance)
    code = process.wait()
    assert_no_process_left(process.pid)
    return code, killed


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random(seed: int, undisturbed: dict[str, str], tmp_path: Path) -> None:
    """Workers, the caller or all are killed when some more batches are written, or while the file is joined."""
    chance = random.Random(seed)
    kills = resumed = 0
    for ending in ENDINGS:
        output = tmp_path / ending[1:] / f"p{ending}"
        for number in range(2 * KILLS):
            log = tmp_path / f"{ending}-{number}.txt"
            code, killed = attempt(number, output, chance, log)
            kills += killed
            resumed += "are predicted already" in log.read_text()
            if code == 0 or f"{output.name} exists" in log.read_text():  # the last one was killed when all was done
                break
            assert killed, log.read_text()
        assert verify(output).samples == (SAMPLES,)
        assert verify(output).sha256 == undisturbed[ending]
        assert sorted(path.name for path in output.parent.iterdir()) == [output.name, f"{output.name}.json"]
    assert kills >= 10 and resumed >= 7, (kills, resumed)
