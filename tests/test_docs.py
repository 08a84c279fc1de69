"""The documentation: its links lead somewhere, its snippets parse, and a newcomer's first pages run as they stand."""

from __future__ import annotations

import contextlib
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
import yaml

from itwinai.cli.main import main
from tests.conftest import REPOSITORY

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "tests/performance/*.md", "tests/gpu/*.md")
    for path in REPOSITORY.glob(pattern)
    if "_build" not in path.parts
)
BLOCK = re.compile(r"^```(\w+|\{code-cell\} ipython3)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere_and_snippets_parse(page: Path) -> None:
    text = page.read_text()
    links = [link for link in LINK.findall(text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    for language, code in BLOCK.findall(text):
        if language == "python":
            compile(code, str(page), "exec")
        elif language == "yaml":
            yaml.safe_load(code)


@pytest.fixture
def own_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Work in an empty folder, whose modules are forgotten at the end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before, threads = set(sys.modules), torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for each other in each small step of the LSTM
    yield
    torch.set_num_threads(threads)
    for name in set(sys.modules) - before:
        if name in ("river", "writer"):
            del sys.modules[name]


def follow(page: Path) -> None:
    """Write the files of a page, and run its commands, here instead of in processes that import everything again.

    Of a tutorial these are the cells with a file or a command; `tests/docs/test_tutorials.py` runs all of them.
    """
    for language, code in BLOCK.findall(page.read_text()):
        if named := re.match(r"(?:# |%%writefile )(\w+\.\w+)\n", code):
            Path(named[1]).write_text(code[named.end() :])
        elif language == "bash" or code.startswith("!"):
            for line in code.replace("!", "").splitlines():
                command, _, output = line.partition(" > ")
                program, *arguments = shlex.split(command)
                with Path(output or "/dev/stderr").open("w") as printed, contextlib.redirect_stdout(printed):
                    if program == "python":
                        runpy.run_path(arguments[0], run_name="__main__")
                        continue
                    assert program == "itwinai"
                    with contextlib.suppress(SystemExit):  # as --print_config ends
                        assert main(arguments) == 0


def test_first_model_and_predictions(own_modules: None) -> None:
    follow(REPOSITORY / "docs/tutorials/your-first-model.md")
    one, two = (torch.load(f"checkpoints/{name}.ckpt")["state_dict"] for name in ("best", "best-v1"))
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=1e-4, atol=1e-5)
    assert yaml.safe_load(Path("own.yaml").read_text())["data"]["class_path"] == "river.RiverData"
    written = yaml.safe_load(Path("new.yaml").read_text())
    assert written["model"]["class_path"] == "river.RiverLSTM"

    follow(REPOSITORY / "docs/how-to/predictions.md")
    for script in ("look.py", "to_file.py", "predict.py"):
        runpy.run_path(script)
    written, checked, of_script = map(pd.read_parquet, ("predictions.parquet", "checked.parquet", "written.parquet"))
    assert len(written) == 256 and list(of_script) == list(checked) == ["index", "discharge", "prediction"]
    returned = torch.load("predictions.pt").numpy()
    for frame in (written, checked, of_script):
        np.testing.assert_allclose(frame["prediction"], returned, rtol=1e-5, atol=1e-5)

    follow(REPOSITORY / "docs/how-to/use-a-trained-model.md")
    discharge = runpy.run_path("ask.py")["discharge"]
    assert discharge.shape == (1000,)
    runpy.run_path("write.py")
    session = onnxruntime.InferenceSession("river.onnx")
    rain = runpy.run_path("ask.py")["rain"].astype("float32")
    np.testing.assert_allclose(session.run(None, {"rain": rain})[0], discharge, rtol=1e-4, atol=1e-5)
