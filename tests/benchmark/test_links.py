"""Links: what is fitted to timings, the file, and real workers that measure them."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itwinai.benchmark.simulate.collectives import ring
from itwinai.benchmark.simulate.measured_links import (
    FittedLink,
    MeasuredLinks,
    Timing,
    fit_link,
    read_links,
    write_links,
)
from itwinai.benchmark.simulate.network_benchmark import SIZES, measure_links, powers_of_two
from itwinai.benchmark.simulate.topology import Link, Topology
from itwinai.cli.benchmark_simulate import links
from itwinai.errors import ConfigurationError, WorkerError
from itwinai.launchers.local import free_port
from tests.conftest import REPOSITORY, python


def timings(link: Link, workers: int, noise: float = 0.0) -> list[Timing]:
    chance = random.Random(0)
    return [Timing(size, ring(size, workers, link).total * (1 + noise * chance.uniform(-1, 1))) for size in SIZES]


@given(
    latency=st.floats(1e-7, 1e-2),
    bandwidth=st.floats(1e7, 1e12),
    workers=st.integers(2, 64),
)
def test_a_link_is_found_again_in_its_timings(latency: float, bandwidth: float, workers: int) -> None:
    link = Link(latency, bandwidth)
    fitted = fit_link(workers, timings(link, workers))
    # What no timing shows cannot be found: the smallest must be told by its latency, the largest by its bandwidth.
    small, large = (ring(size, workers, link) for size in (SIZES[0], SIZES[-1]))
    if small.latency > 0.01 * small.total:
        assert fitted.link.latency == pytest.approx(latency, rel=1e-3)
    if large.transfer > 0.01 * large.total:
        assert fitted.link.bandwidth == pytest.approx(bandwidth, rel=1e-3)
    assert max(map(abs, fitted.errors)) < 1e-3


def test_small_messages_count_as_much_as_large_ones() -> None:
    """Weighted by seconds, the noise of the large ones would decide what latency is."""
    link = Link(20e-6, 1e9)
    fitted = fit_link(4, timings(link, 4, noise=0.1))
    assert fitted.link.latency == pytest.approx(link.latency, rel=0.1)
    assert fitted.link.bandwidth == pytest.approx(link.bandwidth, rel=0.1)
    sizes = [abs(error) for error in fitted.errors]
    assert 0.01 < median(sizes) < 0.1 and max(sizes) < 0.15


def test_errors_of_a_fit_have_the_sign_of_the_prediction() -> None:
    fitted = FittedLink(2, Link(0.0, 1000.0), (Timing(1000, 0.5), Timing(2000, 4.0)))
    assert fitted.errors == (pytest.approx(1.0), pytest.approx(-0.5))


def test_no_latency_is_below_zero() -> None:
    """A small message that is faster than its share of a large one."""
    fitted = fit_link(2, [Timing(1000, 0.5), Timing(2000, 2.0)])
    assert fitted.link.latency == 0.0
    assert 1000 / 0.5 > fitted.link.bandwidth > 2000 / 2.0


@pytest.mark.parametrize(
    ("workers", "times", "message"),
    [
        (1, [Timing(1, 1.0), Timing(2, 2.0)], "two workers"),
        (2, [Timing(8, 1.0)], "two sizes"),
        (2, [Timing(8, 2.0), Timing(1024, 1.0)], "took no more time"),
    ],
)
def test_what_tells_no_link_is_an_error(workers: int, times: list[Timing], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        fit_link(workers, times)


def measured(between: bool = False) -> MeasuredLinks:
    within = tuple(fit_link(n, timings(Link(1e-6 * n, 1e10 / n), n)) for n in (2, 4))
    outer = fit_link(3, timings(Link(1e-5, 1e9), 3)) if between else None
    return MeasuredLinks("gloo", "cpu", 8.0, 4, within, outer)


@pytest.mark.parametrize("between", [False, True])
def test_links_come_back_from_their_file(tmp_path: Path, between: bool) -> None:
    write_links(measured(between), tmp_path / "links.json")
    assert read_links(tmp_path / "links.json") == measured(between)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1}', '{"version": 99, "within": []}', "\x00"])
def test_invalid_links_file_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "links.json").write_text(text)
    with pytest.raises(ConfigurationError, match="links.json"):
        read_links(tmp_path / "links.json")


def test_a_missing_file_of_links_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="itwinai benchmark links -o"):
        read_links(tmp_path / "links.json")


def test_more_workers_of_a_node_have_the_link_that_was_measured_with_as_many() -> None:
    topology = measured(between=True).topology()
    latencies = {n: topology.link_within(n).latency for n in (2, 3, 4, 8)}
    assert latencies == {n: pytest.approx(1e-6 * (2 if n < 4 else 4)) for n in (2, 3, 4, 8)}
    assert topology.workers_per_node == 4 and topology.link_between().bandwidth == pytest.approx(1e9)
    assert measured().topology(8).workers_per_node == 8


def test_one_worker_on_each_node_tells_nothing_of_two() -> None:
    alone = MeasuredLinks("gloo", "cpu", 8.0, 1, (), fit_link(3, timings(Link(1e-5, 1e9), 3)))
    assert alone.topology().link_between().latency == pytest.approx(1e-5)
    with pytest.raises(ConfigurationError, match="2 are to share a node"):
        alone.topology(2)


def test_a_link_that_cannot_be_is_an_error() -> None:
    for latency, bandwidth in ((-1e-6, 1.0), (float("nan"), 1.0), (0.0, 0.0), (0.0, float("nan"))):
        with pytest.raises(ConfigurationError):
            Link(latency, bandwidth)
    with pytest.raises(ConfigurationError, match="at least one worker"):
        Topology(0, Link(0.0, 1.0))


def test_powers_of_two_up_to_a_number() -> None:
    assert [powers_of_two(most) for most in (0, 1, 2, 3, 4, 9)] == [[], [], [2], [2], [2, 4], [2, 4, 8]]


def test_real_workers_measure_their_links(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], record_property: pytest.RecordProperty
) -> None:
    file = tmp_path / "links.json"
    assert links(["--workers", "2", "--backend", "gloo", "-o", str(file)]) == 0
    printed = capsys.readouterr().out
    read = read_links(file)
    assert (read.backend, read.device, read.workers_per_node, read.between) == ("gloo", "cpu", 2, None)
    (fitted,) = read.within
    assert fitted.workers == 2 and [timing.size for timing in fitted.timings] == list(SIZES)
    # 64 MiB take longer than 1 KiB on any machine, and no memory moves 10 TB/s.
    assert fitted.timings[0].seconds < fitted.timings[-1].seconds
    assert 0 < fitted.link.latency < fitted.timings[-1].seconds and fitted.link.bandwidth < 1e13
    record_property("link", str(fitted.link))
    error = f"median {median(map(abs, fitted.errors)):.0%}, largest {max(map(abs, fitted.errors)):.0%}"
    record_property("error of the fit", error)
    assert "67,108,864" in printed and f"Error of the fit: {error}." in printed
    assert max(map(len, printed.replace(str(file), "").splitlines())) <= 100


def test_workers_of_an_outer_launcher_are_joined(tmp_path: Path) -> None:
    """Two launchers stand for two nodes of two workers: within a node, and between both while all four send."""
    script = tmp_path / "measure.py"
    script.write_text(
        "import sys\n"
        "from itwinai.cli.benchmark_simulate import links\n"
        "sys.exit(links(['--backend', 'gloo', '-o', 'links.json']))\n"
    )
    port = str(free_port())
    launchers = [
        subprocess.Popen(
            python(
                *("-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "2"),
                *("--master-addr", "127.0.0.1", "--master-port", port, str(script)),
            ),
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in range(2)
    ]
    outputs = [launcher.communicate(timeout=200)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], "\n".join(outputs)
    assert "".join(outputs).count("written:") == 1, "rank 0 alone tells"
    read = read_links(tmp_path / "links.json")
    assert read.workers_per_node == 2 and [fitted.workers for fitted in read.within] == [2]
    assert read.between is not None and read.between.workers == 2
    assert len(read.between.timings) == len(SIZES)
    assert read.topology().nodes(4) == 2 and read.topology().link_between() == read.between.link


def test_one_worker_has_no_link() -> None:
    with pytest.raises(ConfigurationError, match="2 or more"):
        measure_links([1, 2], "gloo")


def test_more_workers_than_gpus_are_an_error() -> None:
    with pytest.raises(ConfigurationError, match="as many GPUs"):
        measure_links([2, 10_000], "nccl")


@pytest.mark.usefixtures("no_leftovers")
def test_a_worker_that_fails_ends_the_others_and_shows_what_it_has_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuchinterface")
    with pytest.raises(WorkerError, match="(?s)failed.*nosuchinterface"):
        measure_links([2], "gloo")


def test_links_file_holds_plain_numbers(tmp_path: Path) -> None:
    """So that other tools can read it, and people can write one."""
    write_links(measured(), tmp_path / "links.json")
    plain = json.loads((tmp_path / "links.json").read_text())
    assert plain["within"][0]["link"] == {
        "latency": pytest.approx(2e-6),
        "bandwidth": pytest.approx(5e9),
    }
