"""Each tutorial runs from top to bottom and prints nothing that a reader would call noise."""

from __future__ import annotations

import re
from pathlib import Path

import psutil
import pytest
import tutorial_runner

NOISE = re.compile(
    r"\wWarning|WARNING|GPU available|TPU available|litlogger|litmodels|Tip: |DeepSpeed info|\[INFO\]|\[WARNING\]"
    r"|INFO worker\.py|Traceback|\x1b"
)


@pytest.mark.parametrize("tutorial", tutorial_runner.tutorials(), ids=lambda path: path.stem)
def test_tutorial_runs(tutorial: Path) -> None:
    notebook = tutorial_runner.executed(tutorial)
    assert any(cell.get("outputs") for cell in notebook.cells)
    for cell in notebook.cells:
        if "noise" in cell.metadata.get("tags", []):  # the text speaks of it
            continue
        noise = [line for line in tutorial_runner.text_of(cell).splitlines() if NOISE.search(line)]
        assert noise == [], f"printed by:\n{cell.source}"


def test_every_page_of_tutorials_is_run() -> None:
    assert tutorial_runner.tutorials() == sorted(tutorial_runner.TUTORIALS.glob("*.md"))


def test_command_that_fails_is_named_with_its_line_and_what_it_printed() -> None:
    front = tutorial_runner.TUTORIALS.joinpath("your-first-model.md").read_text().split("\n# ")[0]
    cells = ["value = 1", "!echo seen {value}; exit 3", "never = 1"]
    text = front + "".join(f"\n```{{code-cell}} ipython3\n{cell}\n```\n" for cell in cells)
    with pytest.raises(tutorial_runner.TutorialError) as raised:
        tutorial_runner.run(text, "broken")
    message = str(raised.value)
    line = int(re.match(r"docs/tutorials/broken\.md:(\d+)\n", message)[1])  # type: ignore[index]
    assert text.splitlines()[line - 1] == cells[1]
    left = [one.pid for one in psutil.Process().children(recursive=True) if "ipykernel_launcher" in one.cmdline()]
    assert left == [], "a kernel has hundreds of MiB, and the site has one for each tutorial"
    assert "seen 1\n" in message and "exit code 3" in message and "never" not in message


def test_what_an_output_depends_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tutorial_runner, "PACKAGE", tmp_path)
    source = tmp_path / "helper.py"
    source.write_text("one = 1")
    key = tutorial_runner._key("a tutorial")
    assert tutorial_runner._key("a tutorial") == key != tutorial_runner._key("another one")
    source.write_text("one = 2")
    changed = tutorial_runner._key("a tutorial")
    assert changed != key
    source.write_text("one = 1")
    assert tutorial_runner._key("a tutorial") == key  # also an hour later
    monkeypatch.setattr(tutorial_runner, "_versions", lambda: iter(["torch==0"]))
    assert tutorial_runner._key("a tutorial") not in (key, changed)
