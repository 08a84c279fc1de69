"""What people see of a search while it runs, in a terminal and in a file."""

from __future__ import annotations

import fcntl
import io
import math
import os
import pty
import re
import signal
import struct
import termios
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest

from itwinai.trials.records import Objective, Report, SearchRecord, Status, TrialRecord
from itwinai.tune.progress import Events, View, progress_of
from itwinai.tune.progress_display import SearchView
from tests.conftest import REPOSITORY, RunCommand, python
from tests.support.shown import LOSS, PATHS, recorder

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


class Terminal:
    """A terminal of some size, with a program in it, and what the program has written."""

    def __init__(self, lines: int, columns: int, command: list[str]) -> None:
        self.lines, self.columns = lines, columns
        self.written = ""
        environment = {
            name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")
        }
        environment |= {"TERM": "xterm-256color", "PYTHONPATH": str(REPOSITORY)}
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
            os.execve(command[0], command, environment)

    def read(self, until: str | None = None) -> None:
        """Read until a text has come, or the program has ended."""
        with suppress(OSError):  # the program has ended
            while until is None or until not in self.written:
                if not (data := os.read(self.file, 65536)):
                    return
                self.written += data.decode()

    def code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def screen(self) -> list[str]:
        """Return what is to be seen, with the lines that have left the screen above."""
        lines = [""]
        place = column = 0
        for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\n\r]|[^\x1b\n\r]+", self.written):
            if token == "\n":
                place += 1
                lines += [""] * (place + 1 - len(lines))
            elif token == "\r":
                column = 0
            elif token.endswith("A") and token.startswith("\x1b"):
                above = int(token[2:-1] or 1)
                assert above < self.lines, "the table is higher than the terminal: it cannot be drawn over"
                place -= above
            elif token == "\x1b[2K":
                lines[place] = ""
            elif not token.startswith("\x1b"):
                before = lines[place][:column].ljust(column)
                lines[place] = before + token + lines[place][column + len(token) :]
                column += len(token)
        return [line.rstrip() for line in lines]


@contextmanager
def terminal(lines: int, columns: int, how: str) -> Iterator[Terminal]:
    opened = Terminal(lines, columns, python("-m", "tests.support.shown", how))
    try:
        yield opened
    finally:
        os.close(opened.file)


def words(line: str) -> str:
    """Return a line with single spaces."""
    return " ".join(line.split())


def test_terminal() -> None:
    with terminal(20, 100, "whole") as shown:
        shown.read()
        assert shown.code() == 0, shown.written
    assert shown.written.rindex(SHOW) > shown.written.rindex(HIDE)
    screen = shown.screen()
    above = screen.index("printed by somebody else")
    assert screen[above - 1] == "ERROR:root:logged by somebody else"
    assert "trial 1 failed 2 times: ValueError: no number" in "\n".join(screen)
    assert screen.count("clouds  10 of 10 trials done, 1 failed") == 1
    top = screen.index("clouds  10 of 10 trials done, 1 failed")
    assert above < top
    assert screen[top + 1] == "best val_loss=0.14 (trial 6)   2 min 48 s"
    heading, best, *others = screen[top + 2 :]
    assert words(heading) == "trial status lr channels batch_size val_loss best reports time"
    assert words(best) == "6 finished 1e-07 64 large batches o… 0.6067 0.14 6 1 min 12 s"
    assert [line.split()[0] for line in others if line] == ["5", "4", "3", "2", "0", "9", "8", "7", "1"]


def test_small_terminal() -> None:
    with terminal(7, 60, "raise") as shown:
        shown.read()
        assert shown.code() == 1
    assert shown.written.rindex(SHOW) > shown.written.rindex(HIDE)
    screen = shown.screen()
    top = screen.index("clouds  0 of 10 trials done, 4 running, 6 waiting")
    heading, *rows = screen[top + 2 : top + 5]
    assert words(heading) == "trial status lr val_loss best reports time"
    assert [words(row) for row in rows] == [
        "0 running 0.1 0.3333 0.3333 3 36 s",
        "1 running 0.01 0.49 0.49 2 36 s",
    ]
    assert screen[top + 5] == "2 more running; not shown: channels, batch_size"
    assert "RuntimeError: in the midst" in screen[top + 6 :]
    # Above the table, wrapped by the terminal.
    failure = "trial 1 failed, and is retried: ValueError: no number lr=0.01 channels=2 batch_size=large batches"
    assert failure in words(" ".join(screen[:top]))


def test_interrupted_in_a_terminal() -> None:
    with terminal(20, 100, "wait") as shown:
        shown.read(until="printed by somebody else")
        os.write(shown.file, b"\x03")
        shown.read()
        assert shown.code() == -signal.SIGINT
    assert shown.written.rindex(SHOW) > shown.written.rindex(HIDE)
    screen = shown.screen()
    top = screen.index("clouds  0 of 10 trials done, 4 running, 6 waiting")
    assert screen[top + 1] == "best val_loss=0.3033 (trial 3)   48 s"
    assert [row.split()[:2] for row in screen[top + 3 : top + 7]] == [[str(number), "running"] for number in range(4)]


def test_pipe(run_command: RunCommand) -> None:
    finished = run_command(python("-m", "tests.support.shown", "whole"), TERM="xterm-256color", FORCE_COLOR="1")
    assert finished.code == 0
    assert re.sub(r"[^\x00-\x1f\x7f-\x9f]", "", finished.output).strip("\n") == ""
    lines = finished.output.splitlines()
    rest = "batch_size=large batches of many samples"
    assert f"trial 7 stopped  val_loss=0.2633 (its best)  lr=1e-08 channels=128 {rest}  36 s" in lines
    assert f"trial 2 finished  val_loss=0.6467 (best 0.18 at report 5)  lr=0.001 channels=4 {rest}  1 min 12 s" in lines
    assert sum(bool(re.match(r"trial \d (finished|stopped)", line)) for line in lines) == 9
    assert sum("failed 2 times: ValueError: no number" in line for line in lines) == 1
    assert any(line.startswith("trial 3 leads  val_loss=0.97 at report 1  lr=0.0001") for line in lines)
    assert lines[-1] == "10 of 10 trials done, 1 failed; best val_loss=0.14 (trial 6); 2 min 48 s"


def told(records: Iterable[SearchRecord], every: float = math.inf) -> list[list[str]]:
    """Return what is told after each record."""
    events = Events(every)
    return [[event.text for event in events.since_last(View(record))] for record in records]


def trial(number: int, status: Status, *values: float, failures: int = 0, seconds: float = 10.0) -> TrialRecord:
    reports = [Report(place, float(place), {LOSS.metric: value}) for place, value in enumerate(values, start=1)]
    error = "ValueError: boom" if failures else ""
    return TrialRecord(number, f"t{number}", {PATHS[0]: 0.1}, status, reports, seconds, failures, error)


def record(*trials: TrialRecord, seconds: float = 0.0) -> SearchRecord:
    return SearchRecord("by hand", [LOSS], PATHS[:1], trials, seconds)


def test_every_event_of_a_search() -> None:
    assert told(
        [
            record(trial(0, "running")),
            record(trial(0, "running", 3.0)),
            record(trial(0, "running", 3.0, 2.0)),  # better than itself only
            record(trial(0, "running", 3.0, 2.0), trial(1, "running", 1.0)),
            record(trial(0, "waiting", 3.0, 2.0, failures=1), trial(1, "running", 1.0)),
            record(trial(0, "running", 3.0, 2.0, failures=1), trial(1, "finished", 1.0, 0.5, 4.0)),
            record(trial(0, "failed", 3.0, failures=2), trial(1, "finished", 1.0, 0.5, 4.0), trial(2, "running")),
            record(trial(0, "failed", 3.0, failures=2), trial(1, "finished", 1.0, 0.5, 4.0), trial(2, "stopped", 0.1)),
            record(*(trial(number, "finished") for number in range(3)), trial(3, "finished", math.nan)),
        ]
    ) == [
        [],
        ["trial 0 leads  val_loss=3 at report 1  lr=0.1"],
        [],
        ["trial 1 leads  val_loss=1 at report 1  lr=0.1"],
        ["trial 0 failed, and is retried: ValueError: boom  lr=0.1"],
        ["trial 1 finished  val_loss=4 (best 0.5 at report 2)  lr=0.1  10 s"],
        ["trial 0 failed 2 times: ValueError: boom  lr=0.1  10 s"],
        ["trial 2 stopped, the best so far  val_loss=0.1 (its best)  lr=0.1  10 s"],
        ["trial 3 finished  val_loss=nan  lr=0.1  10 s"],
    ]


def test_ever_better_values_of_one_trial_are_told_of_from_time_to_time() -> None:
    records = [record(trial(0, "running", *(3.0 / (1 + place) for place in range(count)))) for count in range(4)]
    assert [len(texts) for texts in told(records, every=math.inf)] == [0, 1, 0, 0]
    assert [len(texts) for texts in told(records, every=0.0)] == [0, 1, 1, 1]


def test_a_search_that_continues_does_not_tell_again_what_was_before() -> None:
    stream = io.StringIO()
    before = [trial(0, "finished", 1.0), trial(1, "failed", failures=2), trial(2, "waiting", failures=1)]
    with SearchView(total=5, stream=stream, interval=0.0) as view:
        view.show(record(*before))
        view.show(record(*before, trial(3, "finished", 2.0), seconds=60.0))
    assert stream.getvalue().splitlines() == [
        "running: 2 of 5 trials done, 3 waiting, 1 failed",
        "trial 3 finished  val_loss=2 (its best)  lr=0.1  10 s",
        "3 of 5 trials done, 2 waiting, 1 failed; best val_loss=1 (trial 0); 1 min, about 20 s left",
    ]


def test_looks_are_no_closer_than_the_interval_and_the_last_is_not_missed() -> None:
    stream = io.StringIO()
    with SearchView(total=10, stream=stream, every=0.0, interval=3600.0) as view:
        for number, one in enumerate(recorder()):
            view.show(replace(one, seconds=float(number)))
    counts = [line for line in stream.getvalue().splitlines() if "trials done" in line]
    assert [line.partition(";")[0] for line in counts] == [
        "0 of 10 trials done, 10 waiting",
        "10 of 10 trials done, 1 failed",
        "10 of 10 trials done, 1 failed",
    ]


def test_several_objectives() -> None:
    objectives = [LOSS, Objective("accuracy", "max")]
    reports = [Report(1, 1.0, {LOSS.metric: 1.0, "accuracy": 0.5}), Report(2, 2.0, {LOSS.metric: 0.5, "accuracy": 0.6})]
    first = replace(trial(0, "finished"), reports=reports)
    second = replace(trial(1, "finished"), reports=reports[:1])
    third = replace(trial(2, "running"), reports=[Report(1, 1.0, {LOSS.metric: 0.4, "accuracy": 0.1})])
    searches = [replace(record(*trials), objectives=objectives) for trials in ([], [first, second, third])]
    assert told(searches)[1] == [
        "trial 0 finished  val_loss=0.5 accuracy=0.6  lr=0.1  10 s",
        "trial 1 finished  val_loss=1 accuracy=0.5  lr=0.1  10 s",
    ]
    assert View(searches[1]).best_text() == "2 trials on the Pareto front"


@pytest.mark.parametrize(
    ("trials", "total", "at_once", "budget", "waiting", "left"),
    [
        ([], 10, 4, None, 10, None),
        ([trial(0, "running", seconds=5)], 10, 4, None, 9, None),
        # 10 s per trial: 8 wait, and 4 more seconds of the one that runs, in 4 places.
        ([trial(0, "finished"), trial(1, "running", seconds=6)], 10, 4, None, 8, 21.0),
        ([trial(0, "finished"), trial(1, "running", seconds=6)], 10, None, None, 8, 84.0),
        ([trial(0, "finished"), trial(1, "running", seconds=6)], 10, 4, 15.0, 8, 15.0),
        ([trial(0, "finished"), trial(1, "stopped", seconds=2), trial(2, "running", seconds=9)], 4, 2, None, 1, 3.0),
        # The last ones: no place is left free for them, and they end when the youngest does.
        ([trial(0, "finished"), trial(1, "running", seconds=1), trial(2, "running", seconds=9)], 3, 4, None, 0, 9.0),
        ([trial(0, "finished"), trial(1, "failed")], 2, 4, 60.0, 0, 0.0),
        ([trial(0, "finished")], None, 4, 60.0, None, 60.0),
        ([trial(0, "finished")], None, 4, None, None, None),
    ],
)
def test_progress(
    trials: list[TrialRecord],
    total: int | None,
    at_once: int | None,
    budget: float | None,
    waiting: int | None,
    left: float | None,
) -> None:
    progress = progress_of(record(*trials), total, at_once, budget)
    assert (progress.waiting, progress.left) == (waiting, left)
