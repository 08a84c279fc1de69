"""What is wrong with a pipeline is one short error, before anything runs."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, SupportsFloat, TypedDict

import numpy
import pandas
import pytest
import torch

from itwinai.cli.main import main
from itwinai.errors import ConfigurationError, ItwinaiError, PipelineError
from itwinai.pipelines import Pipeline
from itwinai.pipelines.execution import begin, perform
from itwinai.pipelines.outputs import encode
from itwinai.pipelines.step_target import not_kept
from tests.pipelines.project import Project

PIPELINE = """steps:
  split:
    class_path: project.steps.split
    init_args:
      raw: raw.txt
  count:
    class_path: project.steps.Count
    init_args:
      data: ${steps.split.train}
  score:
    class_path: project.steps.score
    init_args:
      data: ${steps.split.test}
      weight: 2.0
  report:
    class_path: project.steps.report
    init_args:
      count: ${steps.count}
      score: ${steps.score.score}
      notes: notes.txt
"""

ODD = """
from pathlib import Path
from typing import NamedTuple, Optional
import numpy


class Pair(NamedTuple):
    first: int
    second: int


def untyped(raw):
    return 1


def liar() -> int:
    return "three"


def plain() -> Pair:
    return 1, 2


def number() -> float:
    return numpy.float64(0.5)


class DataFrame:
    pass


class Frames(NamedTuple):
    path: Path
    more: Optional[DataFrame]


def frame() -> DataFrame:
    raise SystemExit("it has run")


def frames() -> list[Frames]:
    raise SystemExit("it has run")


def maybe() -> Optional[dict[str, int]]:
    return None
"""
MODEL = """
from lightning.pytorch.demos.boring_classes import BoringModel


class Model(BoringModel):
    def __init__(self, rate: float = 0.1) -> None:
        super().__init__()
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("split.train", "split.trian", "p.yaml:9: steps.count: ${steps.split.trian}: the step 'split' has no output"),
        ("split.train", "split.trian", "Did you mean 'train'? It returns train, test."),
        ("steps.split.test", "steps.slit.test", "p.yaml:13: steps.score needs the step 'slit', which does not exist."),
        ("${steps.split.test}", "${steps.report}", "steps need each other in a circle: score needs report needs score"),
        ("${steps.count}", "${steps.split.test}", "p.yaml:18: steps.report.init_args.count: ${steps.split.test} is"),
        ("${steps.count}", "${steps.split.test}", "is a Path. Accepted: int."),
        ("weight: 2.0", "weight: heavy", "p.yaml:14: steps.score.init_args.weight: 'heavy' is not accepted here."),
        ("weight: 2.0", "wieght: 2.0", "p.yaml:14: steps.score.init_args.wieght: score() has no argument 'wieght'."),
        ("raw: raw.txt", "share: 1", "p.yaml:2: steps.split: split() needs 'raw', which is not given."),
        ("  score:\n", "  count:\n", "p.yaml:10: 'count' is there twice; the first is in line 6. Keep one."),
        ("steps.Count", "steps.Cuont", "p.yaml:7: steps.count.class_path: project.steps has no 'Cuont'. Did you mean"),
        ("project.steps.Count", "projetc.Count", "there is no module 'projetc'"),
        (
            "    init_args:\n      raw",
            "    init_arg:\n      raw",
            "p.yaml:4: steps.split has no key 'init_arg'. Did you",
        ),
        ("    class_path: project.steps.split", "    fti: a.yaml", "steps.split has none of class_path, fit, validate"),
        ("${steps.count}", "${step.count}", "p.yaml:18: '${step.count}' is not a reference."),
        ("steps:\n", "stesp:\n", "p.yaml:1: a pipeline has no key 'stesp'. Did you mean 'steps'?"),
        (
            PIPELINE[PIPELINE.index("    class_path: project.steps.report") :],
            "    fit: a.yaml\n    override:\n      model.lr: ${steps.count}\n",
            "steps.report.override: Fit has no argument 'override'. Did you mean 'overrides'?",
        ),
        (
            PIPELINE[PIPELINE.index("    class_path: project.steps.report") :],
            "    fit: nope.yaml\n",
            "p.yaml:16: steps.report:",
        ),
        ("project.steps.Count", "project.steps.Split", "the class Split has no method run() or __call__()"),
    ],
)
def test_a_mistake_in_the_file(project: Project, old: str, new: str, message: str) -> None:
    (project.folder / "p.yaml").write_text(PIPELINE.replace(old, new, 1))
    with pytest.raises(ConfigurationError) as raised:
        Pipeline.from_yaml("p.yaml").plan()
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 3 and not (project.folder / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps.score.wieght", "3"], "--steps.score.wieght: steps.score.init_args.wieght: score() has no argument"),
        (["--steps.scroe.weight", "3"], "--steps.scroe.weight: there is no step 'scroe'. Did you mean 'score'?"),
        (["--steps.score.weight", "much"], "--steps.score.weight: steps.score.init_args.weight: 'much' is not"),
        (["scroe"], "There is no step 'scroe'. Did you mean 'score'?"),
        (["score..count"], "score..count: no step leads from score to count"),
        (["report"], "The step 'report' needs the outputs of 'count', which has not run."),
        (["--export", "snakemake", "--on", "slurm"], "--export writes a file, and --on runs the steps"),
    ],
)
def test_a_mistake_in_the_command(
    project: Project, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (project.folder / "p.yaml").write_text(PIPELINE)
    assert main(["run", "p.yaml", *arguments]) == 1
    printed = capsys.readouterr().err
    assert f"error: {message}" in printed and len(printed.splitlines()) <= 3


def test_a_mistake_in_the_name_of_the_file(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in {"pipeline.yaml": PIPELINE, "pipelines.yml": "model: {}\n", "empty.yaml": ""}.items():
        (project.folder / name).write_text(text)
    for given, told in {
        "pipelines.yaml": "There is no pipeline pipelines.yaml. Did you mean 'pipeline.yaml'?",
        "models.yaml": "There is no pipeline models.yaml. Pipelines here: pipeline.yaml.",
    }.items():
        assert main(["run", given]) == 1
        assert capsys.readouterr().err == f"error: {told}\n"
    (project.folder / "pipeline.yaml").unlink()
    assert main(["run", "pipelines.yaml"]) == 1
    assert capsys.readouterr().err == "error: There is no pipeline pipelines.yaml.\n"


def test_a_plan_is_a_table_and_flags_win(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    (project.folder / "p.yaml").write_text(PIPELINE)
    project.pipeline["steps"]["score"]["init_args"]["weight"] = 2.0
    project.run()
    command = ["run", "p.yaml", "--folder", "runs", "--dry-run"]
    versions = pytest.MonkeyPatch()
    with versions.context() as patch:
        patch.setattr("importlib.metadata.packages_distributions", lambda: {"other_package": ["other_package"]})
        patch.setattr("importlib.metadata.version", lambda name: "1")
        assert main([*command, "--steps.score.weight", "3"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "step    what     why",
        "split   cached",
        "count   cached",
        "score   runs     weight 2.0 → 3.0",
        "report  may run  if the outputs of score change",
        "4 steps: 1 to run, 1 may run, 2 cached",
    ]


def test_a_plan_checks_configs_and_names_what_is_absent(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    (project.folder / "model.py").write_text(MODEL)
    (project.folder / "config.yaml").write_text("model: {class_path: model.Model}\n")
    train = "  train:\n    fit: config.yaml\n    overrides:\n      model.rate: ${steps.%s}\n"
    (project.folder / "p.yaml").write_text(PIPELINE + train % "split.train")
    assert main(["run", "p.yaml", "--dry-run"]) == 1
    said = "p.yaml:24: steps.train.overrides.model.rate: ${steps.split.train} is a Path. Accepted: a number"
    assert said in capsys.readouterr().err
    (project.folder / "p.yaml").write_text(PIPELINE + train % "count")
    assert main(["run", "p.yaml", "--dry-run", "--steps.train.trainer.max_epoch", "3"]) == 1
    assert "'trainer' has no 'max_epoch'. Did you mean 'max_epochs'?" in capsys.readouterr().err
    (project.folder / "p.yaml").write_text(PIPELINE.replace("raw.txt", "raww.txt"))
    assert main(["run", "p.yaml", "--dry-run"]) == 0
    assert "has not run yet, there is no raww.txt (but raw.txt)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("liar", "The step 'a' has returned 'three', and odd.liar says that it returns int."),
        ("plain", "The step 'a' has returned (1, 2), and odd.plain says that it returns Pair."),
        ("number", ""),
        ("maybe", ""),
        ("frame", "p.yaml:3: steps.a: odd.frame says that it returns a DataFrame, which cannot be kept. Steps return"),
        ("frames", "odd.frames says that it returns list[odd.Frames], with a DataFrame in it, which cannot be kept."),
        ("untyped", "p.yaml:2: steps.a: untyped() does not say the type of 'raw'. Write it, as in raw: Path"),
    ],
)
def test_what_a_step_says_of_its_types(project: Project, step: str, message: str) -> None:
    (project.folder / "odd.py").write_text(ODD)
    arguments = "    init_args: {raw: 1}\n" if step == "untyped" else ""
    (project.folder / "p.yaml").write_text(f"steps:\n  a:\n    class_path: odd.{step}\n{arguments}")
    if not message:
        planner = Pipeline.from_yaml("p.yaml")._planner()
        assert perform(begin(planner, planner.plan().of("a"))) in (0.5, None)
        return
    with pytest.raises((ConfigurationError, PipelineError)) as raised:
        planner = Pipeline.from_yaml("p.yaml")._planner()
        perform(begin(planner, planner.plan().of("a")))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda project: project.folder / "nothing", "returned the path"),
        (lambda project: [object()], "returned a builtins.object. Steps return paths, numbers, texts"),
    ],
)
def test_what_cannot_be_kept(project: Project, returned: Callable[[Project], object], message: str) -> None:
    with pytest.raises(PipelineError, match=message) as raised:
        encode(returned(project), project.folder, "split")
    assert isinstance(raised.value, ItwinaiError)


@dataclass
class Tree:
    path: Path
    below: list[Tree | None]


class Named(TypedDict):
    frame: pandas.DataFrame


class Base:
    pass


@dataclass
class Kept(Base):
    number: int


@pytest.mark.parametrize(
    ("hint", "part"),
    [
        *((hint, None) for hint in (Any, object, None, type(None), int, "Any", Path, Literal["a"], Tree, Base)),
        *((hint, None) for hint in (numpy.float32, numpy.ndarray, torch.Tensor, Annotated[str, 1], SupportsFloat)),
        *((hint, None) for hint in (Sequence[Path], dict[str, set[int]], tuple[int, ...], Path | None)),
        (Path | pandas.DataFrame, None),
        (pandas.DataFrame, pandas.DataFrame),
        (pandas.DataFrame | None, pandas.DataFrame),
        (dict[str, list[torch.nn.Linear]], torch.nn.Linear),
        (Named, pandas.DataFrame),
        (Iterator[int], Iterator[int]),
        (Annotated[datetime.date, 1], datetime.date),
    ],
    ids=str,
)
def test_types_of_which_nothing_can_be_kept(hint: Any, part: Any) -> None:
    assert not_kept(hint) == part
