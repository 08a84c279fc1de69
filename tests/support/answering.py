"""The search's end of the line to a trial, with answers that a test has chosen."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from itwinai.trials.channel import ChannelServer
from itwinai.trials.session import Decision, RemoteSession


@dataclass
class Answering:
    """What a trial has said, and its session."""

    session: RemoteSession
    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def reports(self) -> list[dict[str, float]]:
        """The metrics of all reports."""
        return [message["metrics"] for message in self.messages if "metrics" in message]


@contextmanager
def answering(folder: str, decisions: Sequence[Decision] = (), resume_path: str | None = None) -> Iterator[Answering]:
    """Answer what a trial says, first with these decisions, then that it goes on."""
    server = ChannelServer()
    answered = Answering(RemoteSession(server.address, folder, resume_path))
    left = list(decisions)
    over = threading.Event()

    def answer() -> None:
        while not over.is_set():
            if (message := server.receive(0.05)) is not None:
                answered.messages.append(message)
                server.reply({"decision": (left.pop(0) if left else Decision.CONTINUE).value})

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield answered
    finally:
        over.set()
        thread.join()
        server.close()
