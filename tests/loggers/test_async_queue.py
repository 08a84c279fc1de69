"""Records arrive in order and once, or are set aside; who puts them does not wait for who takes them."""

from __future__ import annotations

import logging
import threading
from typing import Any

import cloudpickle
import pytest

from itwinai.loggers import async_queue
from itwinai.loggers.async_queue import Delivery
from tests.conftest import RunCommand, python


class Away(Exception):
    """The destination may come back."""


class Refused(Exception):
    """It will not change its mind."""


class Destination:
    """Takes records, unless it is told to be away, or to refuse, or to keep the sender waiting."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.set_aside: list[int] = []
        self.reasons: list[str] = []
        self.errors: list[Exception] = []
        self.called = threading.Event()
        self.open = threading.Event()
        self.open.set()

    @property
    def received(self) -> list[int]:
        return [record for batch in self.batches for record in batch]

    def send(self, records: list[int]) -> None:
        self.called.set()
        self.open.wait()
        if self.errors:
            raise self.errors.pop(0)
        self.batches.append(list(records))

    def keep(self, records: list[int], reason: str) -> None:
        self.set_aside += records
        self.reasons.append(reason)

    def delivery(self, **options: Any) -> Delivery[int]:
        return Delivery(
            self.send, lambda error: isinstance(error, Away), self.keep, "the store", **{"interval": 0.01, **options}
        )


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_queue, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(async_queue, "LONGEST_PAUSE", 0.02)


def test_records_arrive_in_order_and_in_batches() -> None:
    store = Destination()
    queue = store.delivery(batch=10)
    for record in range(95):
        queue.put(record)
    assert queue.flush(10)
    assert store.received == list(range(95))
    assert max(len(batch) for batch in store.batches) <= 10
    queue.close()
    queue.put(95)  # as a logger that is used for a test after the fit
    assert queue.flush(10)
    assert store.received[-1] == 95
    queue.close()
    assert store.set_aside == []


def test_full_batch_does_not_wait_for_the_interval() -> None:
    store = Destination()
    queue = store.delivery(batch=10, interval=3600)
    for record in range(10):
        queue.put(record)
    assert store.called.wait(10)
    queue.close()


def test_who_puts_does_not_wait_for_who_takes() -> None:
    store = Destination()
    store.open.clear()
    queue = store.delivery(batch=10)
    for record in range(1000):
        queue.put(record)
    assert store.called.wait(10)
    assert store.received == []
    store.open.set()
    assert queue.flush(10)
    assert store.received == list(range(1000))
    queue.close()


def test_destination_that_was_away_gets_everything_once(caplog: pytest.LogCaptureFixture) -> None:
    store = Destination()
    store.errors = [Away("no route"), Away("no route"), Away("no route")]
    queue = store.delivery(batch=2, interval=3600)
    for record in range(5):
        queue.put(record)
    with caplog.at_level(logging.WARNING):
        assert queue.flush(10)
    assert store.received == [0, 1, 2, 3, 4]
    away, back = [record.getMessage() for record in caplog.records]
    assert away.startswith("the store is away: no route.")
    assert back.startswith("the store is back after") and back.endswith("5 records have waited.")
    queue.close()


def test_single_failure_is_not_worth_a_word(caplog: pytest.LogCaptureFixture) -> None:
    store = Destination()
    store.errors = [Away("connection closed")]
    queue = store.delivery()
    queue.put(0)
    with caplog.at_level(logging.WARNING):
        assert queue.flush(10)
    assert (store.received, caplog.records) == ([0], [])
    queue.close()


def test_refusal_is_raised_where_the_next_record_is_put() -> None:
    store = Destination()
    store.errors = [Refused("no such run")]
    queue = store.delivery()
    queue.put(0)
    with pytest.raises(Refused, match="no such run"):
        queue.flush(10)
    with pytest.raises(Refused, match="no such run"):
        queue.put(1)
    assert (store.received, store.set_aside, store.reasons) == ([], [0], ["no such run"])
    queue.close()


def test_records_not_sent_in_time_are_set_aside_and_later_ones_are_sent() -> None:
    store = Destination()
    store.open.clear()
    queue = store.delivery(batch=2)
    for record in range(5):
        queue.put(record)
    assert store.called.wait(10)
    assert not queue.flush(0.01)
    assert store.set_aside == [0, 1, 2, 3, 4]  # also those of which nobody knows whether they arrive
    assert store.reasons == ["not sent within 0.01 s"]
    store.errors = [Away("late")]  # for the batch that is still on its way
    store.open.set()
    queue.put(5)
    assert queue.flush(10)
    assert store.received == [5]
    queue.close()


def test_wait_continues_while_records_arrive() -> None:
    store = Destination()
    store.open.clear()
    queue = store.delivery(batch=1)
    never = threading.Event()

    def send(records: list[int]) -> None:
        if records[0] < 5:
            never.wait(0.25)  # all five take longer than the patience, each does not
            store.batches.append(records)
        else:
            store.send(records)

    queue.send = send
    for record in range(7):
        queue.put(record)
    assert not queue.flush(60, patience=1)
    assert (store.received, store.set_aside) == ([0, 1, 2, 3, 4], [5, 6])
    store.open.set()
    queue.close()


def test_reason_is_that_of_the_last_attempt() -> None:
    store = Destination()
    store.errors = [Away(f"attempt {number}") for number in range(10_000)]
    queue = store.delivery()
    queue.put(0)
    assert not queue.flush(0.1)
    assert store.reasons[0].startswith("attempt ")
    queue.close()


def test_close_sets_aside_what_nobody_has_flushed() -> None:
    store = Destination()
    queue = store.delivery(interval=3600)
    queue.put(0)
    queue.close()
    assert (store.received, store.set_aside) == ([], [0])


def test_interrupted_flush_sets_everything_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Destination()
    store.open.clear()
    queue = store.delivery(interval=3600)  # nothing is sent before the flush

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt  # as Ctrl-C, which a real signal would raise anywhere

    monkeypatch.setattr(queue, "_wait_while_sending", interrupted)
    queue.put(0)
    with pytest.raises(KeyboardInterrupt):
        queue.flush(60)
    assert store.set_aside == [0]
    store.open.set()
    queue.close()


def test_full_queue_makes_who_puts_wait(caplog: pytest.LogCaptureFixture) -> None:
    store = Destination()
    store.open.clear()
    queue = store.delivery(batch=2, bound=10)
    lengths = []

    def put_all() -> None:
        for record in range(50):
            queue.put(record)
            lengths.append(record)

    putting = threading.Thread(target=put_all)
    with caplog.at_level(logging.WARNING):
        putting.start()
        assert store.called.wait(10)
        putting.join(0.2)
        assert putting.is_alive()
        assert len(lengths) <= 12  # those in the queue, and those on their way
        store.open.set()
        putting.join(10)
        assert queue.flush(10)
    assert store.received == list(range(50))
    assert [record.getMessage().startswith("10 records wait for the store") for record in caplog.records] == [True]
    queue.close()


def test_copy_begins_empty() -> None:
    """Loggers travel to workers inside the trainer, also while they are in use."""
    received: list[int] = []
    queue = Delivery(received.extend, bool, list.append, "the store", interval=3600)
    queue.put(1)
    copied = cloudpickle.loads(cloudpickle.dumps(queue))
    copied.put(2)
    assert copied.flush(10)
    copied.close()
    assert queue.flush(10)
    queue.close()
    assert received == [1]  # the copy has a list of its own


SCRIPT = """
import os, sys, threading
from itwinai.loggers import async_queue

def queue(send):
    return async_queue.Delivery(send, bool, lambda *records: print("set aside", *records, flush=True), "the store")

def send(records):
    print(os.getpid() == parent, records, flush=True)

parent = os.getpid()
used, stuck = queue(send), queue(lambda records: threading.Event().wait())
used.put("before")
if os.fork() == 0:
    used.put("child")
    used.flush(10)
    os._exit(0)
os.wait()
async_queue.EXIT_TIMEOUT = 0.5
stuck.put("stuck")
"""


def test_forked_processes_and_the_end_of_a_process(run_command: RunCommand) -> None:
    """A child sends its own records only; what nobody has flushed is sent at the end, which waits for nothing else."""
    finished = run_command(python("-c", SCRIPT))
    assert finished.code == 0, finished.output
    assert finished.output.splitlines() == [
        "False ['child']",
        "set aside ['stuck'] not sent within 0.5 s",
        "True ['before']",
    ]
