"""A small project with a pipeline, in a folder, and its steps run in this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from itwinai.pipelines.content_hash import ContentHasher
from itwinai.pipelines.distributions import Distributions
from itwinai.pipelines.execution import begin, finish, perform
from itwinai.pipelines.planner import Plan, Planner
from itwinai.pipelines.record import RunFolder
from itwinai.pipelines.steps_file import read_steps

STEPS = """
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import other_package
from project import helpers
from project.helpers import number_of_split
from itwinai.pipelines import OutputFolder


class Split(NamedTuple):
    train: Path
    test: Path


def split(raw: Path, output: OutputFolder, share: int = 2) -> Split:
    text = raw.read_text().strip()
    for name in ("train", "test"):
        (output / name).write_text(f"{name} {text} {number_of_split() // 10} {share}")
    return Split(output / "train", output / "test")


class Count:
    def __init__(self, data: Path) -> None:
        self.data = data

    def run(self) -> int:
        return crc32(self.data.read_bytes()) + helpers.number_of_count() // 10


def score(data: Path, weight: float = 1.0) -> dict[str, float]:
    return {"score": crc32(data.read_bytes()) * weight + int(other_package.__version__)}


def report(count: int, score: float, notes: str, output: OutputFolder) -> Path:
    path = output / "report.txt"
    path.write_text(f"{count} {score} {Path(notes).read_text()}")
    return path
"""
HELPERS = '''
"""Numbers."""


def number_of_split() -> int:
    return _constant({split})


def number_of_count() -> int:
    return {count}


def _constant(value: int) -> int:
    return value
'''
PIPELINE: dict[str, Any] = {
    "steps": {
        "split": {"class_path": "project.steps.split", "init_args": {"raw": "raw.txt"}},
        "count": {"class_path": "project.steps.Count", "init_args": {"data": "${steps.split.train}"}},
        "score": {"class_path": "project.steps.score", "init_args": {"data": "${steps.split.test}"}},
        "report": {
            "class_path": "project.steps.report",
            "init_args": {"count": "${steps.count}", "score": "${steps.score.score}", "notes": "notes.txt"},
        },
    }
}


class GivenVersions(Distributions):
    """Versions that a test says."""

    def __init__(self, versions: Mapping[str, str]) -> None:
        super().__init__()
        self._names = {name: [name] for name in versions}
        self.given = versions

    def version(self, name: str) -> str:
        return self.given[name]


@dataclass
class Project:
    """The files of a project, and how its pipeline runs."""

    folder: Path
    numbers: dict[str, int] = field(default_factory=lambda: {"split": 10, "count": 10})
    versions: dict[str, str] = field(default_factory=lambda: {"other_package": "1"})
    comment: int = 0
    pipeline: dict[str, Any] = field(default_factory=lambda: yaml.safe_load(yaml.safe_dump(PIPELINE)))

    def write(self) -> None:
        """Write all that differs; the times of files that are as they were stay."""
        files = {
            "project/__init__.py": "",
            "project/steps.py": STEPS + f"# {self.comment}\n" + "\n" * self.comment,
            "project/helpers.py": HELPERS.format(**self.numbers),
            "site-packages/other_package.py": f"__version__ = '{self.versions['other_package']}'",
        }
        defaults = {"raw.txt": "rain", "notes.txt": "as measured"}
        for name, text in {**files, **{n: t for n, t in defaults.items() if not (self.folder / n).exists()}}.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.read_text() != text:
                path.write_text(text)

    def change(self, name: str, text: str, keep_times: bool = True) -> None:
        """Write a file; its times and its length stay if the text is as long."""
        path = self.folder / name
        status = path.stat()
        path.write_text(text)
        if keep_times:
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def planner(self) -> Planner:
        """Return a planner that has imported the project's modules as they are now."""
        for name in [one for one in sys.modules if one.partition(".")[0] in ("project", "other_package")]:
            del sys.modules[name]
        folder = RunFolder(self.folder / "runs")
        planner = Planner(read_steps(self.pipeline), folder, ContentHasher(folder.cache), GivenVersions(self.versions))
        planner.check()
        return planner

    def plan(self, steps: Iterable[str] = (), forced: Iterable[str] = ()) -> Plan:
        """Return which steps run."""
        return self.planner().plan(list(steps), list(forced))

    def run(self) -> dict[str, str]:
        """Run what has changed in this process; return why, by step."""
        planner, ran = self.planner(), {}
        for name in planner.file.graph.needs:
            planned = planner.decide(name)
            if planned.status == "runs":
                request = begin(planner, planned)
                finish(planner, planned, request, perform(request))
                ran[name] = ", ".join(planned.reasons)
        planner.hasher.save()
        return ran
