"""Workers are grouped by node, each of which one of them measures."""

from __future__ import annotations

from itwinai.monitoring.node_topology import WorkerLocation, nodes_of


def test_workers_of_two_nodes() -> None:
    locations = [
        WorkerLocation("a", 0, 11),
        WorkerLocation("b", 1, 12),
        WorkerLocation("a", 0, 13),
        WorkerLocation("b", 1, 14),
    ]
    nodes = nodes_of(locations)
    assert [(node.name, node.leader, [worker.pid for worker in node.workers]) for node in nodes] == [
        ("a", 0, [11, 13]),
        ("b", 1, [12, 14]),
    ]


def test_machines_of_the_same_name() -> None:
    assert [
        node.name
        for node in nodes_of([WorkerLocation("a", 0, 1), WorkerLocation("a", 1, 2), WorkerLocation("b", 2, 3)])
    ] == [
        "a-0",
        "a-1",
        "b",
    ]
