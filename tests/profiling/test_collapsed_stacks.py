"""What is read from collapsed stacks, on stacks whose answer is known."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from itwinai.profiling.collapsed_stacks import Frame, Function, lowest_functions, read_stacks, top_functions
from itwinai.profiling.flame_graph import flame_graph

TORCH = "/env/lib/python3.11/site-packages/torch"
STACKS = f"""\
<module> (/home/me/run.py:1);fit (/home/me/train.py:10);forward ({TORCH}/nn/linear.py:5) 6
<module> (/home/me/run.py:1);fit (/home/me/train.py:10);load (/home/me/data.py:3) 1
<module> (/home/me/run.py:1);fit (/home/me/train.py:10);load (/home/me/data.py:3);open (<frozen codecs>:309) 2
<module> (/home/me/run.py:1);walk (/home/me/data.py:9);walk (/home/me/data.py:9);walk (/home/me/data.py:9) 1
"""


def shares(functions: list[Function]) -> dict[str, tuple[float, float]]:
    return {function.name: (round(function.self_share, 3), round(function.total_share, 3)) for function in functions}


def test_shares_of_functions() -> None:
    """10 samples; a function that calls itself is counted once in a sample."""
    functions = top_functions(STACKS)
    assert shares(functions) == {
        "forward": (0.6, 0.6),
        "open": (0.2, 0.2),
        "load": (0.1, 0.3),
        "walk": (0.1, 0.1),
        "<module>": (0, 1),
        "fit": (0, 0.9),
    }
    assert [function.name for function in functions[:2]] == ["forward", "open"]
    assert [function.place for function in functions[:3]] == [
        "torch/nn/linear.py:5",
        "<frozen codecs>:309",
        "me/data.py:3",
    ]
    assert len(top_functions(STACKS, limit=2)) == 2
    assert top_functions("") == []


def test_time_belongs_to_the_function_of_the_user_that_has_called_the_library() -> None:
    """The innermost frame within: fit for what torch does, load for what the standard library does."""
    assert shares(lowest_functions(STACKS, Path("/home/me"))) == {
        "fit": (0, 0.6),
        "load": (0.1, 0.3),
        "walk": (0.1, 0.1),
    }
    assert shares(lowest_functions(STACKS, "torch")) == {"forward": (0.6, 0.6)}
    assert [function.name for function in lowest_functions(STACKS, "/home/me", limit=1)] == ["fit"]
    assert lowest_functions(STACKS, "/home/other") == []


def test_packages_that_are_installed_within_the_users_folder_are_not_the_users() -> None:
    stacks = "fit (/home/me/train.py:1);forward (/home/me/.venv/lib/python3.11/site-packages/torch/nn.py:2) 1\n"
    assert shares(lowest_functions(stacks, "/home/me/")) == {"fit": (0, 1)}
    assert shares(lowest_functions(stacks, "torch")) == {"forward": (1, 1)}


@pytest.mark.parametrize(
    ("text", "frame"),
    [
        ("run (/a b/c (old)/d.py:12)", Frame("run", "/a b/c (old)/d.py", 12)),
        ("at::mm(Tensor const&) (libtorch_cpu.so)", Frame("at::mm(Tensor const&)", "libtorch_cpu.so", 0)),
        ("<listcomp> (<frozen importlib._bootstrap>:241)", Frame("<listcomp>", "<frozen importlib._bootstrap>", 241)),
        ("Model.forward (C:\\code\\model.py:7)", Frame("Model.forward", "C:\\code\\model.py", 7)),
        ("0x7f2cad2a3f16", Frame("0x7f2cad2a3f16", "", 0)),
    ],
)
def test_frames_as_py_spy_writes_them(text: str, frame: Frame) -> None:
    assert list(read_stacks(f"thread (0x7F00): MainThread;{text} 5\n")) == [([frame], 5)]


def boxes(svg: str) -> dict[str, tuple[float, int]]:
    """Return share and row of each box, by function."""
    root = ElementTree.fromstring(svg)
    found = {}
    for group in root.iter("{http://www.w3.org/2000/svg}g"):
        rectangle = group.find("{http://www.w3.org/2000/svg}rect")
        title = group.findtext("{http://www.w3.org/2000/svg}title")
        assert rectangle is not None and title is not None
        found[title.split(" ")[0]] = (float(rectangle.get("width", 0)) / 1200, int(rectangle.get("y", 0)))
    return found


def test_flame_graph_shows_shares_and_callers() -> None:
    drawn = boxes(flame_graph(STACKS, "rank 0 & <co>"))
    assert {name: round(share, 2) for name, (share, _) in drawn.items()} == {
        "<module>": 1,
        "fit": 0.9,
        "forward": 0.6,
        "load": 0.3,
        "open": 0.2,
        "walk": 0.1,
    }
    assert drawn["<module>"][1] < drawn["fit"][1] < drawn["load"][1] < drawn["open"][1]
    assert boxes(flame_graph("", "nothing")) == {}


def test_code_of_the_user_stands_out_in_the_flame_graph() -> None:
    lines = flame_graph(STACKS, "rank 0").splitlines()
    own = {line.split("<title>")[1].split(" ")[0] for line in lines if 'fill="#F4A582"' in line}
    assert own == {"&lt;module&gt;", "fit", "load", "walk"}


def test_flame_graph_of_many_small_stacks_stays_small() -> None:
    stacks = "".join(f"main (/a.py:1);f{i} (/a.py:{i}) 1\n" for i in range(10_000))
    assert list(boxes(flame_graph(stacks, "many"))) == ["main"]
    deep = ";".join(f"f{i} (/a.py:{i})" for i in range(3_000))
    assert len(boxes(flame_graph(f"{deep} 1\n", "deep"))) == 3_000
