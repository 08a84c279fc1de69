"""`itwinai init`: each kind of folder works at once, with every command, and without a further argument."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from itwinai.cli.init import KINDS, TEMPLATES
from itwinai.cli.main import main
from itwinai.predictions.joined import read_manifest

MODULES = ("model", "data")
SHORT = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
COLUMNS = {
    "digits": {"digit", "probability"},
    "timeseries": {"forecast", "actual"},
    "tabular": {"predicted", "actual"},
    "image": {"label", "probability"},
}


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Work in an empty folder, whose modules are forgotten at the end; with one thread, as folders are small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    for name in MODULES:
        sys.modules.pop(name, None)
    yield tmp_path
    torch.set_num_threads(threads)
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_evaluates_and_predicts(
    kind: str, empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", kind, "demo"]) == 0
    printed = capsys.readouterr().out
    assert "written to demo: README.md, config.yaml, data.py, model.py" in printed
    assert "\n  cd demo\n  itwinai fit " in printed
    monkeypatch.chdir("demo")
    readme = Path("README.md").read_text()
    assert readme.startswith("# demo\n") and len(readme.splitlines()) <= 10 and "TITLE" not in readme
    assert main(["fit", "--strategy", "ddp", "--devices", "2", *SHORT]) == 0
    (checkpoint,) = Path("runs").rglob("*.ckpt")
    capsys.readouterr()
    assert main(["test", "--output", "metrics.json", *SHORT[1:]]) == 0
    assert "test_loss" in Path("metrics.json").read_text()
    assert main(["predict", "--output", "preds.parquet", *SHORT[1:]]) == 0
    manifest = read_manifest(Path("preds.parquet"))
    assert manifest.about["checkpoint"] and Path(manifest.about["checkpoint"]).name == checkpoint.name
    frame = pd.read_parquet("preds.parquet")
    assert len(frame) > 200 and COLUMNS[kind] <= {name.removeprefix("prediction.") for name in frame.columns}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_searched(kind: str, empty: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    main(["init", kind])
    monkeypatch.chdir(kind)
    assert main(["tune", "--tune.num_samples=2", *SHORT]) == 0
    best = yaml.safe_load(Path("searches/search/best_config.yaml").read_text())
    assert best["model"]["class_path"] == yaml.safe_load(Path("config.yaml").read_text())["model"]["class_path"]
    assert len(list(Path("searches/search").glob("00*"))) == 2


def test_predictions_of_an_untrained_model_need_a_word(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "tabular", "."]) == 0
    assert "cd " not in capsys.readouterr().out
    assert main(["predict", "--output", "p.parquet", *SHORT[1:]]) == 1
    assert "there is none of this config's runs" in capsys.readouterr().err
    assert main(["predict", "--output", "p.parquet", "--ckpt", "none", *SHORT[1:]]) == 0


def test_nothing_is_overwritten(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (empty / "digits").mkdir()
    (empty / "digits" / "mine.py").write_text("")
    assert main(["init"]) == 1
    told = capsys.readouterr().err
    assert (
        told == "error: digits is not empty, and is not overwritten. Name another folder: itwinai init digits NAME.\n"
    )
    assert [path.name for path in (empty / "digits").iterdir()] == ["mine.py"]
    assert main(["init", "tabluar"]) == 1
    assert "Did you mean 'tabular'? The kinds are\n  digits " in capsys.readouterr().err
    assert main(["init", "demo"]) == 1
    assert "For a folder of that name: itwinai init digits demo." in capsys.readouterr().err
    assert main(["init", "image", "digits/mine.py/x"]) == 1
    assert "digits/mine.py/x cannot be written: Not a directory" in capsys.readouterr().err


def test_kinds_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(KINDS)
    assert {path.name for path in TEMPLATES.iterdir() if path.is_dir()} == set(KINDS)


@pytest.mark.parametrize("command", ["tune", "benchmark", "check", "slurm"])
def test_a_folder_without_a_config(command: str, empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (empty / "other.yaml").write_text("a: 1\n")
    assert main([command]) == 1
    told = capsys.readouterr().err
    assert f"error: No config is given, and there is no config.yaml in {empty}. Give one: itwinai {command}" in told
    assert told.endswith("Config files here: other.yaml.\n")


def test_a_benchmark_is_described_by_the_config(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (TEMPLATES / "digits" / "config.yaml").read_text()
    for old, new, told in (
        ("workers: [1, 2]", "workers: [one]", "config.yaml:37: benchmark.workers is ['one']; write whole numbers"),
        ("workers: [1, 2]", "worker: 2", "has an entry 'worker', which is unknown. Did you mean 'workers'?"),
    ):
        assert old in text
        Path("config.yaml").write_text(text.replace(old, new))
        assert main(["benchmark"]) == 1
        printed = capsys.readouterr().err
        assert told.split(":", 2)[-1] in printed, printed
    Path("config.yaml").write_text(text.replace("  workers: [1, 2]\n", ""))
    with pytest.raises(SystemExit):
        main(["benchmark", "--steps", "2"])
    assert "nothing says which workers to compare: give --workers 1,2,4, or a section" in capsys.readouterr().err
