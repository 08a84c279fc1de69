"""The line between a trial and its search."""

from __future__ import annotations

import math
import pickle
import socket
import threading
from collections.abc import Iterator

import pytest

from itwinai.trials.channel import Address, Channel, ChannelClosedError, ChannelServer
from itwinai.trials.checkpoint_reference import read_reference, write_reference
from itwinai.trials.current_session import find_session, in_trial
from itwinai.trials.session import Decision, RemoteSession
from tests.support.answering import answering


@pytest.fixture
def server() -> Iterator[ChannelServer]:
    """Return an server."""
    server = ChannelServer()
    yield server
    server.close()


def test_messages_go_both_ways(server: ChannelServer) -> None:
    line = Channel.to(server.address)
    line.send({"loss": math.inf, "name": "ä\n"})
    line.send({"second": 2})
    assert server.receive(5) == {"loss": math.inf, "name": "ä\n"}
    assert server.receive(5) == {"second": 2}
    server.reply({"decision": "stop"})
    assert line.receive(5) == {"decision": "stop"}
    assert line.receive(0) is None
    assert server.receive(0.01) is None


def test_who_does_not_know_the_key_is_not_heard(server: ChannelServer) -> None:
    right = Channel.to(server.address)
    wrong = Channel.to(Address(server.address.host, server.address.port, "guess"))
    wrong.send({"from": "wrong"})
    right.send({"from": "right"})
    assert server.receive(5) == {"from": "right"}
    assert server.receive(0.2) is None
    with pytest.raises(ChannelClosedError):
        wrong.receive(5)


@pytest.mark.parametrize("sent", [b"not json\n", b"[1]\n", b'{"key": 5}\n'])
def test_nonsense_does_not_disturb(server: ChannelServer, sent: bytes) -> None:
    with socket.create_connection((server.address.host, server.address.port)) as stranger:
        stranger.sendall(sent)
        line = Channel.to(server.address)
        line.send({"from": "right"})
        assert server.receive(5) == {"from": "right"}


def test_a_new_caller_takes_the_place_of_one_that_was_killed(server: ChannelServer) -> None:
    first = Channel.to(server.address)
    first.send({"number": 1})
    assert server.receive(5) == {"number": 1}
    first.close()
    second = Channel.to(server.address)
    second.send({"number": 2})
    assert server.receive(5) == {"number": 2}
    server.reply({"decision": "continue"})
    assert second.receive(5) == {"decision": "continue"}


def test_a_search_that_is_gone_ends_its_trial() -> None:
    server = ChannelServer()
    session = RemoteSession(server.address, "folder")
    asked = threading.Thread(target=lambda: server.receive(5))
    asked.start()
    answers: list[Decision] = []
    trial = threading.Thread(target=lambda: answers.append(session.report(1, {"loss": 1.0}, "", "")))
    trial.start()
    asked.join()
    server.close()
    trial.join()
    assert answers == [Decision.STOP]
    with pytest.raises(ChannelClosedError, match="cannot be reached"):
        RemoteSession(server.address, "folder").report(1, {}, "", "")


def test_a_session_goes_to_another_process_without_its_connection() -> None:
    with answering("folder", [Decision.CONTINUE, Decision.SAVE], resume_path="a.ckpt") as answered:
        session = answered.session
        assert session.report(1, {"loss": 1.0}, "", "") == Decision.CONTINUE
        other: RemoteSession = pickle.loads(pickle.dumps(session))
        assert (other.folder, other.resume_path) == ("folder", "a.ckpt")
        assert other.report(2, {"loss": 0.5}, "b.ckpt", "b.ckpt") == Decision.SAVE
    assert [message["number"] for message in answered.messages] == [1, 2]


def test_a_session_is_found_where_a_trial_runs_and_only_there() -> None:
    with answering("folder") as answered:
        with in_trial(answered.session):
            assert find_session() is answered.session
            elsewhere: list[object] = []
            thread = threading.Thread(target=lambda: elsewhere.append(find_session()))
            thread.start()
            thread.join()
            assert elsewhere == [None]
        assert find_session() is None


def test_a_reference_says_where_a_checkpoint_is(tmp_path) -> None:
    assert read_reference(str(tmp_path)) is None
    write_reference(str(tmp_path), "s3://bucket/report.ckpt")
    assert read_reference(str(tmp_path)) == "s3://bucket/report.ckpt"
