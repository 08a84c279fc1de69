"""Editors, notebooks and type checkers know the public names, and the arguments of the trainer one by one."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint as LightningModelCheckpoint

from itwinai import ItwinaiTrainer, Predictor
from itwinai.callbacks import ModelCheckpoint
from tests.conftest import REPOSITORY

WIDER = {"logger"}  # our type of this argument has more in it than lightning's
MADE = {"strategy", "logger", "callbacks", "plugins"}  # what we make of these goes on to lightning
OWN = [
    "split_batches",
    "weigh_uneven_batches",
    "max_restarts",
    "resume",
    "preemption_signals",
    "watch",
    "launcher",
    "cpu_threads",
    "compile_step",
]


def test_trainer_has_the_arguments_of_lightning_s_and_its_own() -> None:
    """Fails when a release of lightning adds, removes or changes an argument: follow it in `ItwinaiTrainer`."""
    theirs, ours = inspect.signature(Trainer).parameters, inspect.signature(ItwinaiTrainer).parameters
    assert list(ours) == [*theirs, *OWN]
    for name, parameter in theirs.items():
        assert (ours[name].kind, ours[name].default) == (parameter.kind, parameter.default), name

    types, lightning_types = get_type_hints(ItwinaiTrainer.__init__), get_type_hints(Trainer.__init__)
    assert {name for name in theirs if types[name] != lightning_types[name]} == WIDER
    for name in ("fit", "validate", "test", "predict"):
        assert inspect.signature(getattr(ItwinaiTrainer, name)) == inspect.signature(getattr(Trainer, name))


def test_checkpoint_callback_has_the_arguments_of_lightning_s() -> None:
    theirs, ours = inspect.signature(LightningModelCheckpoint).parameters, inspect.signature(ModelCheckpoint).parameters
    assert ours.keys() - theirs.keys() == {"every", "keep", "background", "on_error"}
    assert theirs.keys() - ours.keys() == set()
    assert {name for name, parameter in theirs.items() if ours[name].default != parameter.default} == set()
    given = {"monitor": "loss", "save_last": True, "save_top_k": 3, "mode": "max", "every_n_epochs": 2}
    given |= {"verbose": True, "save_on_exception": True, "save_weights_only": True, "auto_insert_metric_name": False}
    given |= {"save_on_train_epoch_end": True, "enable_version_counter": False}
    made, expected = vars(ModelCheckpoint(**given)), vars(LightningModelCheckpoint(**given))  # type: ignore[arg-type]
    assert {name: made[name] for name in expected} == expected


@pytest.mark.parametrize("documented", [ItwinaiTrainer, ModelCheckpoint, Predictor, Predictor.load])
def test_every_argument_is_documented(documented: Callable[..., object]) -> None:
    """`itwinai fit --help` takes the descriptions from there."""
    names = [line.split(":")[0].strip() for line in (documented.__doc__ or "").splitlines() if ": " in line]
    assert [name for name in inspect.signature(documented).parameters if name not in names] == []


def test_trainer_passes_every_argument_of_lightning_on(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = [name for name in inspect.signature(Trainer).parameters if name not in MADE]
    passed: dict[str, object] = {}

    class StopHere(Exception):
        pass

    def init(self: Trainer, **arguments: object) -> None:
        passed.update(arguments)
        raise StopHere

    monkeypatch.setattr(Trainer, "__init__", init)
    given = {name: f"value of {name}" for name in theirs} | {"accelerator": "cpu", "devices": 1, "num_nodes": 1}
    with pytest.raises(StopHere):
        ItwinaiTrainer(**given)  # type: ignore[arg-type]
    assert {name: passed[name] for name in theirs} == given


@pytest.mark.parametrize(
    "name", ["itwinai", *(f"itwinai.{room}" for room in ("callbacks", "loggers", "strategies", "tune"))]
)
def test_public_names_are_listed(name: str) -> None:
    module = importlib.import_module(name)
    assert dir(module) == sorted(module.__all__)
    assert all(hasattr(module, public) for public in module.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'missing'"):
        module.missing  # noqa: B018


SCRIPT = """
from itwinai import ItwinaiTrainer, Predictor
from itwinai.callbacks import LoggingCallback, ModelCheckpoint
from itwinai.loggers import JSONLLogger
from itwinai.strategies import DDPStrategy, DeepSpeedStrategy, HorovodStrategy, RayStrategy
from itwinai.tune import SearchResult, Tuner


def search(tuner: Tuner) -> SearchResult:
    return tuner.fit()


predictor = Predictor.load("a.ckpt", batch_size=64)
trainer = ItwinaiTrainer(
    strategy=DDPStrategy(), devices=2, max_epochs=3, callbacks=[ModelCheckpoint("checkpoints", every="10min")]
)
"""
MISTAKES = """
ItwinaiTrainer(max_epoch=3)
ItwinaiTrainer(max_epochs="three")
ModelCheckpoint(monitr="val_loss")
Predictor.load("a.ckpt", batchsize=3)
"""


def test_editable_install_is_followed_by_type_checkers(tmp_path: Path) -> None:
    """In a new environment that has nothing but what `pip install -e` puts there, beside what we build on."""
    build = f"import setuptools.build_meta as backend; backend.build_editable({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=REPOSITORY, check=True, capture_output=True)
    venv.create(tmp_path / "venv", with_pip=False)
    packages = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(packages)
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    added = [line for file in packages.glob("__editable__*.pth") for line in file.read_text().splitlines()]
    assert [sorted(path.name for path in Path(line).glob("*") if path.suffix != ".egg-info") for line in added] == [
        ["itwinai"]
    ], "one folder, with no other name in it that a user may have for a package"

    # Of other packages nothing is read: torch alone would take a minute.
    settings = "[mypy]\nstrict = true\nfollow_imports = skip\n[mypy-itwinai.*]\nfollow_imports = normal\n"
    (tmp_path / "mypy.ini").write_text(settings)
    (tmp_path / "right.py").write_text(SCRIPT)
    (tmp_path / "wrong.py").write_text(SCRIPT + MISTAKES)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=mypy.ini", f"--python-executable={tmp_path}/venv/bin/python"]
        + ["--cache-dir=cache", "right.py", "wrong.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": ""},
    )
    first = len(SCRIPT.splitlines()) + 2
    errors = [line.partition(": error: ") for line in checked.stdout.splitlines() if ": error: " in line]
    assert [where for where, _, _ in errors] == [f"wrong.py:{first + number}" for number in range(4)], checked.stdout
    assert '"max_epoch"' in errors[0][2] and 'did you mean "max_epochs"' in errors[0][2]
