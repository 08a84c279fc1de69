"""A mistake in a config or a flag is one block: where it is, what is accepted there, and what was meant."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from itwinai.cli.main import main

MODULE = "mistaken_river"  # imported in this process: a name that no other test has
SOURCE = """
import torch
import lightning.pytorch as pl


class River(pl.LightningModule):
    def __init__(self, hidden: int = 16, lr: float = 0.01):
        super().__init__()


class Strict(River):
    def __init__(self, gauge: str, hidden: int = 16):
        super().__init__()


class NoSuper(pl.LightningModule):
    def __init__(self, hidden: int = 16):
        self.layer = torch.nn.Linear(1, hidden)


class Broken(River):
    def __init__(self, hidden: int = 16):
        raise ValueError(f"hidden has to be even, not {hidden}")


class Data(pl.LightningDataModule):
    def __init__(self, root: str = "data", batch_size: int = 32):
        super().__init__()
"""
CONFIG = f"""\
seed_everything: false
trainer:
  max_epochs: 1
  accelerator: cpu
  logger: false
model:
  class_path: {MODULE}.River
  init_args:
    hidden: 8
data:
  class_path: {MODULE}.Data
  init_args:
    batch_size: 50
"""
FIT = ["fit", "-c", "config.yaml"]
CALLBACK = "logger: false\n  callbacks:\n    - class_path: lightning.pytorch.callbacks."


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Be in a folder with the user's module and config."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / f"{MODULE}.py").write_text(SOURCE)
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "pipeline.yaml").write_text("steps: {}\n")  # is no config
    yield tmp_path
    sys.modules.pop(MODULE, None)


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return what a command prints that fails: one block, no usage, no frames of frameworks."""
    try:
        code = main(argv)
    except SystemExit as ended:
        code = int(ended.code or 0)
    output = "".join(capsys.readouterr())
    told = output[output.index("error: ") :]
    assert code != 0
    assert len(told.splitlines()) <= 12 and "usage:" not in output and "Traceback" not in output, output
    return " ".join(told.split())


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("max_epochs", "max_epoch", "config.yaml:3: trainer.max_epoch: 'trainer' has no 'max_epoch'. Did you mean"),
        (
            "hidden: 8",
            "hiden: 8",
            "config.yaml:9: model.init_args.hiden: {}.River has no argument 'hiden'. Did you mean",
        ),
        ("hidden: 8", "hiden: 8", "Accepted: hidden: int = 16, lr: float = 0.01"),
        ("batch_size", "batchsize", "config.yaml:13: data.init_args.batchsize: {}.Data has no argument 'batchsize'."),
        ("trainer:", "trainr:", "config.yaml:2: trainr: a config has no 'trainr'. Did you mean 'trainer'?"),
        (
            "max_epochs: 1",
            "max_epochs: ten",
            "config.yaml:3: trainer.max_epochs: 'ten' is not accepted here. Accepted: a",
        ),
        (
            "hidden: 8",
            "hidden: eight",
            "config.yaml:9: model.init_args.hidden: 'eight' is not accepted here. Accepted: a",
        ),
        (
            "accelerator: cpu",
            "precision: bf16mixed",
            "trainer.precision: 'bf16mixed' is not accepted here. Did you mean 'bf",
        ),
        ("River", "Strict", "config.yaml:7: model: {}.Strict needs the argument 'gauge'"),
        (f"{MODULE}.River", "mistaken_rivr.River", "there is no module 'mistaken_rivr'"),
        (f"{MODULE}.River", "mistaken_rivr.River", "Did you mean '{}.River'?"),
        (".River", ".Rivr", "config.yaml:7: model.class_path: the module '{}' has no 'Rivr'. Did you mean 'River'?"),
        (
            f"{MODULE}.River",
            "Rivver",
            "'Rivver' names no class that is known here; a class path is module.Class. Did you",
        ),
        (".River", ".Data", "{}.Data is a LightningDataModule, and not a LightningModule."),
        (f"  class_path: {MODULE}.River\n  init_args:\n  ", "", "config.yaml:6: model: there is no class_path"),
        (f"  class_path: {MODULE}.River\n  init_args:\n  ", "", "-c config.yaml --model {}.River"),
        ("  class_path", "  classpath", "config.yaml:7: model.classpath: it is called 'class_path'."),
        ("accelerator: cpu", "accelerator: [cpu", "config.yaml:5: this does not continue line 4"),
        ("  accelerator", "\taccelerator", "config.yaml:4: there is a tab. YAML is indented with spaces."),
        (
            "logger: false",
            "max_epochs: 2",
            "config.yaml:5: 'max_epochs' is there twice; the first is in line 3. Keep one.",
        ),
        (
            "logger: false",
            "devices: 0",
            "config.yaml:5: trainer.devices: devices=0 is not a number of workers. Give 1 or",
        ),
        (
            "logger: false",
            "strategy: hovorod",
            "config.yaml:5: trainer.strategy: There is no strategy named 'hovorod'. Did",
        ),
        (
            "logger: false",
            "logger: mlfow",
            "config.yaml:5: trainer.logger: There is no logger 'mlfow'. Did you mean 'mlflow'",
        ),
        (
            "logger: false",
            "callbacks: {EarlyStopping: {monitor: x}}",
            "Accepted is a list of classes: callbacks: - class_path",
        ),
        ("logger: false", f"{CALLBACK}EarlyStoping", "config.yaml:7: trainer.callbacks[0].class_path: the module"),
        (
            "logger: false",
            "callbacks:\n    - class_path: itwinai.callbacks.ModelCheckpoints",
            "has no 'ModelCheckpoints'. Did you mean 'ModelCheckpoint'?",
        ),
        ("logger: false", f"{CALLBACK}EarlyStopping", "EarlyStopping needs the argument 'monitor'"),
        (".River", ".Broken", "config.yaml:7: {}.Broken failed: ValueError: hidden has to be even, not 8 File"),
        (
            ".River",
            ".NoSuper",
            "{}.NoSuper failed: call super().__init__() first in its __init__ (cannot assign module",
        ),
        (
            "  max_epochs",
            "   max_epochs",
            "config.yaml:3: 'max_epochs' is indented by 3 spaces, and 'accelerator' after",
        ),
        ("logger: false", "precision: fp16", "'fp16' is not accepted here. Did you mean '16-mixed'?"),
    ],
)
def test_mistakes_in_a_config(old: str, new: str, told: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert old in CONFIG
    (folder / "config.yaml").write_text(CONFIG.replace(old, new, 1))
    output = refused(FIT, capsys)
    assert told.format(MODULE) in output, output


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "config.yaml is empty. A config has sections"),
        ("- trainer\n", "config.yaml:1: there is a list at the top level"),
        ("trainer:\n  max_epochs: 1\n", "config.yaml: there is no section 'model'. Write model: class_path: {}.River"),
    ],
)
def test_whole_configs(text: str, told: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "config.yaml").write_text(text)
    assert told.format(MODULE) in refused(FIT, capsys)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["fit", "-c", "confg.yaml"], "There is no config file confg.yaml. Did you mean 'config.yaml'?"),
        (["tune", "-c", "confg.yaml"], "There is no config file confg.yaml. Did you mean 'config.yaml'?"),
        (["fit", "-c", "pipline.yaml"], "There is no config file pipline.yaml. Config files here: config.yaml."),
        (["fit", "-c", "."], ". is a folder, but -c needs a config file. Config files here: config.yaml."),
        (["fit", "-c"], "-c: the value is missing. Accepted: the path of a config file."),
        (
            ["benchmark", "--strategies", "ddp"],
            "nothing says which workers to compare: give --workers 1,2,4, or a section",
        ),
        (["fti", *FIT[1:]], "there is no command 'fti'. Did you mean 'fit'?"),
        (["-c", "config.yaml", "fit"], "the command comes first: itwinai fit -c config.yaml"),
        (
            [*FIT, "--trainer.callbacks", "itwinai.callbacks.ModelChekpoint"],
            "--trainer.callbacks: the module 'itwinai.callbacks' has no 'ModelChekpoint'. Did you mean",
        ),
        ([*FIT, "extra"], "'extra' belongs to no flag."),
        (["fit", "tune", *FIT[1:]], "'tune' is a second command: run one at a time."),
        (["fit", *FIT[1:], "validate"], "'validate' is a second command: run one at a time."),
        (["fit", "config.yaml"], "'config.yaml' belongs to no flag. Did you mean '-c config.yaml'?"),
        ([*FIT, "--device", "2"], "--device: there is no such flag. Did you mean '--devices'?"),
        ([*FIT, "--trainer.max_epoch", "2"], "there is no such flag. Did you mean '--trainer.max_epochs'?"),
        ([*FIT, "--max_epochs", "2"], "--max_epochs: there is no such flag. Did you mean '--trainer.max_epochs'?"),
        ([*FIT, "--model.hiden", "2"], "--model.hiden: model.init_args.hiden: {}.River has no argument 'hiden'."),
        (
            [*FIT, "--trainer.max_epochs"],
            "--trainer.max_epochs: the value is missing. Accepted: a whole number or null.",
        ),
        (
            [*FIT, "--trainer.callbacks.1.patience", "1"],
            "a flag cannot name a callback by its number (the paths of `itwinai tune` can). Set patience in the config",
        ),
        (FIT, "itwinai fit: Data has no train_dataloader. Write one."),
        (["test", *FIT[1:]], "itwinai test: Data has no test_dataloader. Write one."),
        ([*FIT, "--devices", "2", "--trainer.accelerator", "gpu"], "with devices=2 needs 2 GPUs, and torch"),
        ([*FIT, "--devices", "-3"], "--devices: devices=-3 is not a number of workers. Give 1 or more"),
        ([*FIT, "--devices", "two"], "--devices: devices=two is not a number of workers. Give 1 or more"),
        ([*FIT, "--strategy", "hovorod"], "--strategy: There is no strategy named 'hovorod'. Did you mean 'horovod'?"),
        ([*FIT, "--logger", "csv,mlfow"], "--logger: There is no logger 'mlfow'. Did you mean 'mlflow'?"),
        ([*FIT, "--trainer.accelerator", "gppu"], "--trainer.accelerator: You selected an invalid accelerator name"),
        (["validate", *FIT[1:], "--trainer.max_steps", "x"], "--trainer.max_steps: 'x' is not accepted here."),
        (["predict", *FIT[1:], "--model.hidden", "x"], "--model.hidden: model.init_args.hidden: 'x' is not accepted"),
        (
            ["benchmark", *FIT[1:], "--strategies", "ddp", "--workers", "1", "--model.hiden", "2"],
            "--model.hiden: model.init_args.hiden: {}.River has no argument 'hiden'. Did you mean 'hidden'?",
        ),
        (
            ["benchmark", *FIT[1:], "--strategies", "ddp", "--worker", "1"],
            "in the config. Did you mean '--workers' by '--worker'?",
        ),
    ],
)
def test_mistakes_on_the_command_line(argv: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = refused(argv, capsys)
    assert told.format(MODULE) in output, output


def test_no_config_at_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "config.yaml").rename(folder / "other.yaml")
    told = "Give one with -c CONFIG, or name classes: --model {}.River. Config files here: other.yaml."
    assert told.format(MODULE) in refused(["fit"], capsys)


def test_a_module_whose_import_fails_is_told_with_its_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / f"{MODULE}.py").write_text("import os\nimport xarrray_that_is_not_there\n")
    output = refused(FIT, capsys)
    assert f'importing {MODULE} failed: File "{MODULE}.py", line 2' in output
    assert "No module named 'xarrray_that_is_not_there'" in output


def test_what_a_lightning_cli_of_the_user_links_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = CONFIG.replace("River", "Strict").replace("batch_size: 50", "gauge: a")
    (folder / f"{MODULE}.py").write_text(SOURCE.replace("root: str", "gauge: str"))
    (folder / "config.yaml").write_text(text)
    output = refused(FIT, capsys)
    assert "needs the argument 'gauge'" in output and "link_arguments" in output


OWN = """\
# my run
trainer: {max_epochs: 1, accelerator: cpu}
model:
  # as in the paper
  hidden: 8
data:
  batch_size: 50  # fits
optimizer:
  lr: 0.1
ckpt_path: null
"""


def test_a_config_of_an_own_lightning_cli_is_adopted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = folder / "own.yaml"
    own.write_text(OWN)
    classes = ["--model", f"{MODULE}.River", "--data", f"{MODULE}.Data", "--optimizer", "torch.optim.Adam"]
    assert main(["config", "--adopt", "own.yaml", *classes, "--output", "new.yaml"]) == 0
    assert own.read_text() == OWN
    text = (folder / "new.yaml").read_text()
    assert "    # as in the paper\n    hidden: 8\n" in text and "# fits" in text and text.startswith("# my run\n")
    config = yaml.safe_load(text)
    assert config["model"] == {"class_path": f"{MODULE}.River", "init_args": {"hidden": 8}}
    assert config["optimizer"] == {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.1}}
    # The flags alone do the same.
    for arguments in (["-c", "new.yaml"], ["-c", "own.yaml", *classes]):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main(["fit", *arguments, "--model.lr", "0.5", "--print_config"])
        printed = yaml.safe_load(capsys.readouterr().out)
        assert printed["model"] == {"class_path": f"{MODULE}.River", "init_args": {"hidden": 8, "lr": 0.5}}
        assert printed["data"]["init_args"] == {"root": "data", "batch_size": 50}
    assert f"model is {MODULE}.River already" in refused(["config", "--adopt", "new.yaml", "--model", "a.B"], capsys)
    output = refused(["fit", "-c", "own.yaml", *classes[:2]], capsys)
    assert "own.yaml:6: data: there is no class_path" in output and f"--data {MODULE}.Data" in output
    output = refused(["config", "--adopt", "own.yaml", *classes[:2]], capsys)
    assert "own.yaml:6: data has no class_path. Name its class: --data" in output
    assert own.read_text() == OWN


def test_a_config_without_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = CONFIG.partition("data:")[0]
    (folder / "config.yaml").write_text(text)
    for command, loader in {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}.items():
        told = refused([command, *FIT[1:]], capsys)
        assert f"there is no data: the config has no section 'data', and River has no {loader}_dataloader" in told
        assert told.endswith(f"or give --data {MODULE}.Data.")


def test_arguments_that_a_checkpoint_overrides(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["validate", *FIT[1:], "--ckpt_path", "model.ckpt", "--model.hidden", "16"]
    torch.save({"hyper_parameters": {"_class_path": f"{MODULE}.River", "hidden": 4}}, folder / "model.ckpt")
    with pytest.warns(UserWarning, match="--model.hidden: hidden=16 is not used: .* model.ckpt, with hidden=4"):
        main(argv)
    # A script has saved it, and not the command.
    torch.save({"hyper_parameters": {"hidden": 4}}, folder / "model.ckpt")
    assert "Data has no val_dataloader" in refused(argv, capsys)  # it has come as far as that
    torch.save({"hyper_parameters": {"_class_path": f"{MODULE}.NoSuper", "hidden": 4}}, folder / "model.ckpt")
    told = refused([*argv, "--model", f"{MODULE}.River"], capsys)
    assert f"--model: the model is {MODULE}.River, and the checkpoint model.ckpt is one of {MODULE}.NoSuper" in told


def test_the_class_of_a_missing_section_is_looked_for_where_the_other_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a_file_before.py").write_text(SOURCE)
    (folder / "config.yaml").write_text(CONFIG.partition("data:")[0])
    assert f"class_path: {MODULE}.Data # or a_file_before.Data or give --data {MODULE}.Data." in refused(FIT, capsys)


def test_a_config_of_another_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = CONFIG.replace(MODULE, "a_module_over_there")
    (folder / "config.yaml").write_text(text)
    (folder / "a_module_over_there.py").write_text(SOURCE)
    (folder / "below").mkdir()
    monkeypatch.chdir(folder / "below")
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one != str(folder)])
    told = refused(["fit", "-c", "../config.yaml"], capsys)
    assert "There is one beside the config: run itwinai in .., or set PYTHONPATH=.." in told


def test_mistakes_in_several_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "more.yaml").write_text("model:\n  init_args:\n    hiden: 3\ndata: data.yaml\n")
    assert "more.yaml:3: model.init_args.hiden: " in refused([*FIT, "-c", "more.yaml"], capsys)
    (folder / "config.yaml").write_text(CONFIG.partition("data:")[0] + "data: data.yaml\n")
    (folder / "data.yaml").write_text(f"class_path: {MODULE}.Data\ninit_args:\n  root: 2000-01-01\n  size: 2\n")
    assert "data.yaml:4: data.init_args.size: " in refused(FIT, capsys)


def test_short_names_of_classes_that_flags_import(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "config.yaml").write_text(CONFIG.replace(f"{MODULE}.River", "River"))
    with pytest.raises(SystemExit) as ended:
        main([*FIT, "--model", f"{MODULE}.River", "--print_config"])
    assert ended.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["hidden"] == 8


def test_full_traceback_on_demand(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "config.yaml").write_text(CONFIG.replace(".River", ".Broken"))
    monkeypatch.setenv("ITWINAI_FULL_TRACEBACK", "1")
    assert main(FIT) == 1
    shown = capsys.readouterr().err
    assert "ValueError: hidden has to be even" in shown
    assert "in instantiate_classes" in shown and shown.count('  File "') > 5
