"""Workers are grouped by node, each of which one of them measures."""

from __future__ import annotations

from itwinai.measure.nodes import Place, nodes_of


def test_workers_of_two_nodes() -> None:
    places = [Place("a", 0, 11), Place("b", 1, 12), Place("a", 0, 13), Place("b", 1, 14)]
    nodes = nodes_of(places)
    assert [(node.name, node.leader, [worker.pid for worker in node.workers]) for node in nodes] == [
        ("a", 0, [11, 13]),
        ("b", 1, [12, 14]),
    ]


def test_machines_of_the_same_name() -> None:
    assert [node.name for node in nodes_of([Place("a", 0, 1), Place("a", 1, 2), Place("b", 2, 3)])] == [
        "a-0",
        "a-1",
        "b",
    ]
