"""The command line: quick to answer, and lightning's own where it trains."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from itwinai.callbacks import PredictionWriter
from itwinai.cli.fit import ray_workers
from itwinai.cli.main import main, misplaced_command, unknown_command, usage
from itwinai.compat.jsonargparse import parser_arguments
from itwinai.config.lightning_cli import PREDICTIONS_LOST, parsed
from itwinai.config.source import expand_short_flags
from itwinai.launchers.ray_init import RayWorkersRequest
from tests.conftest import REPOSITORY, RunCommand, python
from tests.support.cases import Regression, loader, make_trainer

DIGITS = REPOSITORY / "examples" / "digits"


def test_import_changes_nothing(run_command: RunCommand) -> None:
    check = (
        "import logging, os, signal, sys\n"
        "def state(): return dict(os.environ), [signal.getsignal(s) for s in (2, 10, 15)], logging.root.handlers[:]\n"
        "before = state()\n"
        "import itwinai\n"
        "assert state() == before\n"
        "heavy = {'torch', 'lightning', 'numpy', 'ray', 'horovod', 'deepspeed', 'jsonargparse'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from itwinai.cli import main\n"
        "assert main.main(['--help']) == 0\n"
        "assert not {'torch', 'lightning'} & set(sys.modules)\n"
    )
    ended = run_command(python("-c", check))
    assert ended.code == 0, ended.output


def test_help_names_every_command() -> None:
    for command in ("fit", "validate", "test", "predict", "slurm", "doctor", "install"):
        assert f"\n  {command} " in usage()


def test_a_command_behind_flags() -> None:
    assert misplaced_command(["-c", "a.yaml", "fit"]) == "the command comes first: itwinai fit -c a.yaml"
    assert misplaced_command(["--nonsense"]) is None


def test_unknown_command() -> None:
    assert "Did you mean 'doctor'?" in unknown_command("docter")


def test_short_help_names_flags_that_are_there_with_their_defaults(
    capsys: pytest.CaptureFixture[str], run_command: RunCommand
) -> None:
    assert main(["fit", "--help"]) == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) < 50 and "--help-all" in short
    parser = parsed({"model": {"class_path": "tests.support.tuned.Regression"}}).parser
    known = {one.name: one for one in parser_arguments(parser)}
    told = dict(re.findall(r"^  --trainer\.(\w+) .*?\[(\w+|-1)[\]:]", short, re.MULTILINE))
    assert len(told) > 10
    for name, default in told.items():
        assert known[f"trainer.{name}"].default == yaml.safe_load(default), name
    for flag in re.findall(r"--trainer\.\w+", short):
        assert flag.removeprefix("--") in known, flag
    whole = run_command(python("-m", "itwinai.cli.main", "fit", "--help-all"), fresh=True)
    assert whole.code == 0 and "--trainer.model_registry" in whole.output


@pytest.mark.parametrize(
    ("given", "expanded"),
    [
        (["fit", "--strategy", "ray"], ["fit", "--trainer.strategy", "ray"]),
        (["fit", "--devices=2", "-c", "a.yaml"], ["fit", "-c", "a.yaml", "--trainer.devices=2"]),
        (["fit", "--num-nodes", "3"], ["fit", "--trainer.num_nodes", "3"]),
        (["fit", "--model.strategy", "x"], ["fit", "--model.strategy", "x"]),
        (["fit", "--watch", "-c", "a.yaml"], ["fit", "-c", "a.yaml", "--trainer.watch=true"]),
        (["fit", "--logger", "csv,jsonl"], ["fit", "--trainer.logger", "csv,jsonl"]),
    ],
)
def test_short_flags(given: list[str], expanded: list[str]) -> None:
    assert expand_short_flags(given) == expanded


@pytest.mark.parametrize(
    ("arguments", "workers"),
    [
        (["--strategy", "ray", "--devices", "2"], RayWorkersRequest(2)),
        (["-c", "{config}"], RayWorkersRequest(6)),
        (
            ["--config={config}", "--strategy=ray_horovod", "--devices", "4", "--trainer.accelerator", "cpu"],
            RayWorkersRequest(8, on_cpu=True),
        ),
        (["-c", "{config}", "--strategy", "ray_deepspeed"], RayWorkersRequest(6, early=False)),
        (["-c", "{config}", "--strategy", "ddp"], None),
        (["-c", "{config}", "--devices", "auto"], None),
        (["-c", "{config}", "--devices", "-1"], None),
        (["-c", "{config}", "--help"], None),
        (["-c", "missing.yaml", "--strategy", "ray", "--devices", "2"], None),
    ],
)
def test_ray_workers_that_are_known_at_once(
    arguments: list[str], workers: RayWorkersRequest | None, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("trainer:\n  strategy: ray\n  devices: 3\n  num_nodes: 2\nmodel: x\n")
    given = [argument.format(config=config) for argument in arguments]
    assert ray_workers(["fit", *given]) == workers


@pytest.fixture
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example, in which runs may leave what they leave."""
    left = shutil.ignore_patterns("runs", "__pycache__", "resolved-config.yaml")
    return Path(shutil.copytree(DIGITS, tmp_path_factory.mktemp("example") / "digits", ignore=left))


@pytest.mark.parametrize("max_epochs", ["1", "one"])
def test_ray_that_was_started_early(max_epochs: str, run_command: RunCommand, tmp_path: Path, digits: Path) -> None:
    flags = ["--strategy", "ray", "--devices", "2", f"--trainer.default_root_dir={tmp_path}"]
    imports = tmp_path / "imports"
    imports.mkdir()
    with (digits / "model.py").open("a") as file:  # says which processes import it, and with which rank
        file.write("import os, pathlib\n")
        file.write(f"path = pathlib.Path({str(imports)!r}, str(os.getpid()))\n")
        file.write("path.write_text(f\"{os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')}\")\n")
    ended = run_command(
        python("-m", "itwinai.cli.main", "fit", "-c", "config.yaml", *flags, f"--trainer.max_epochs={max_epochs}"),
        cwd=digits,
        fresh=True,
    )
    assert (ended.code == 0) == (max_epochs == "1"), ended.output
    wanted = "2 workers launched by Ray" if max_epochs == "1" else "trainer.max_epochs"
    assert wanted in ended.output
    assert "SIGTERM handler" not in ended.output
    if max_epochs == "1":
        assert sorted(path.read_text() for path in imports.iterdir()) == ["0 of 2", "1 of 2", "None of None"]


def test_fit_then_test_from_a_config(run_command: RunCommand, tmp_path: Path, digits: Path) -> None:
    itwinai = ["-m", "itwinai.cli.main"]
    common = ["-c", str(DIGITS / "config.yaml"), "--strategy", "ddp", "--devices", "2"]
    root = f"--trainer.default_root_dir={tmp_path}"
    fitted = run_command(
        python(*itwinai, "fit", *common, root, "--trainer.max_epochs=2", "--trainer.logger=false"),
        cwd=digits,
    )
    assert fitted.code == 0, fitted.output
    assert "2 workers launched by itwinai" in fitted.output
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    results = ["--output", str(tmp_path / "results.json")]
    test = python(*itwinai, "test", *common, root, f"--ckpt={checkpoint}", *results)
    tested = run_command(test, cwd=digits, fresh=True)
    assert tested.code == 0, tested.output
    assert "test_acc" in tested.output
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["checkpoint"] == str(checkpoint) and found["workers"] == 2
    assert set(found["metrics"]) == {"test_loss", "test_accuracy"} and 0.5 < found["metrics"]["test_accuracy"] < 1


def test_checkpoints_from_a_config(run_command: RunCommand, tmp_path: Path) -> None:
    """All arguments of the callback arrive, and the user's own config file stays as it is."""
    text = (DIGITS / "config.yaml").read_text()
    callback = {"class_path": "itwinai.callbacks.ModelCheckpoint"}
    callback["init_args"] = {"dirpath": "kept", "filename": "{step}", "every": "5steps", "keep": 2}  # type: ignore
    config = yaml.safe_load(text)
    config["trainer"] = {"max_steps": 23, "logger": False, "accelerator": "cpu", "callbacks": [callback]}
    (tmp_path / "config.yaml").write_text("# my own\n" + yaml.safe_dump(config))
    before = (tmp_path / "config.yaml").read_text()
    command = python("-m", "itwinai.cli.main", "fit", "-c", "config.yaml", "--trainer.resume", "auto")
    ended = run_command(command, cwd=tmp_path, PYTHONPATH=f"{REPOSITORY}:{DIGITS}")
    assert ended.code == 0, ended.output
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["step=15.ckpt", "step=20.ckpt"]
    assert (tmp_path / "config.yaml").read_text() == before
    ended = run_command([*command, "--trainer.max_steps", "31"], cwd=tmp_path, PYTHONPATH=f"{REPOSITORY}:{DIGITS}")
    assert ended.code == 0, ended.output
    assert "step=20.ckpt" in ended.output
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["step=25.ckpt", "step=30.ckpt"]


@pytest.mark.parametrize(
    ("flag", "name", "meant"), [("--strategy", "horovodd", "horovod"), ("--logger", "csv,mlfow", "mlflow")]
)
def test_unknown_names_on_the_command_line(
    flag: str, name: str, meant: str, run_command: RunCommand, digits: Path
) -> None:
    ended = run_command(python("-m", "itwinai.cli.main", "fit", "-c", "config.yaml", flag, name), cwd=digits)
    assert ended.code != 0
    assert f"Did you mean '{meant}'?" in ended.output


def test_a_file_that_is_no_checkpoint(run_command: RunCommand, digits: Path) -> None:
    command = python("-m", "itwinai.cli.main", "fit", "-c", "config.yaml", "--ckpt", "config.yaml", "--devices", "1")
    ended = run_command([*command, "--trainer.logger", "false"], cwd=digits)
    assert ended.code != 0 and "Traceback" not in ended.output
    assert "config.yaml is not a checkpoint, which ends in .ckpt" in ended.output


def test_a_run_is_watched_and_keeps_its_secrets(run_command: RunCommand, tmp_path: Path) -> None:
    secret = "do-not-tell-this"
    (tmp_path / "secretive.py").write_text(
        "from model import DigitsClassifier\n"
        "class Secretive(DigitsClassifier):\n"
        "    def __init__(self, api_key: str, url: str, **options):\n"
        "        super().__init__(**options)\n"
    )
    config = yaml.safe_load((DIGITS / "config.yaml").read_text())
    config["model"] = {
        "class_path": "secretive.Secretive",
        "init_args": {"api_key": secret, "url": f"https://me:{secret}@h"},
    }
    config["trainer"]["callbacks"] = [{"class_path": "itwinai.callbacks.RunSummary", "init_args": {"path": "my.html"}}]
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(config))
    flags = ["--logger", "csv,jsonl", "--watch", "--trainer.max_epochs=1", "--trainer.enable_checkpointing=false"]
    command = python("-m", "itwinai.cli.main", "fit", "-c", "given.yaml", *flags)
    ended = run_command(command, cwd=tmp_path, PYTHONPATH=f"{REPOSITORY}:{DIGITS}")
    assert ended.code == 0, ended.output
    assert ended.output.count("run summary: Secretive") == 1  # the one of the config, and no other
    assert "my.html" in ended.output and (tmp_path / "my.html").exists()
    saved = yaml.safe_load((tmp_path / "lightning_logs" / "csv" / "version_0" / "resolved-config.yaml").read_text())
    given = saved["model"]["init_args"]
    assert (given["api_key"], given["url"]) == ("***", "https://me:***@h")
    assert saved["trainer"]["logger"] == "csv,jsonl"
    told = [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert told == [tmp_path / "given.yaml"]
    assert secret not in ended.output


PREDICTED = """
import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset


class Predicted(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def predict_step(self, batch, batch_idx):
        return self.layer(batch[0])

    def predict_dataloader(self):
        return DataLoader(TensorDataset(torch.arange(100.0)[:, None]), 64)
"""


def test_predict_writes_a_file(run_command: RunCommand, tmp_path: Path) -> None:
    """Without --output it says what to add; with it, the file has every sample, with one worker and with two."""
    (tmp_path / "predicted.py").write_text(PREDICTED)
    config = {"model": {"class_path": "predicted.Predicted"}, "trainer": {"accelerator": "cpu", "logger": False}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    command = python("-m", "itwinai.cli.main", "predict", "-c", "config.yaml")
    ended = run_command(command, cwd=tmp_path)
    assert ended.code == 0, ended.output
    assert PREDICTIONS_LOST.strip() in ended.output
    assert "nothing has kept the predictions of this run: add --output" in ended.output.strip().splitlines()[-2]
    ended = run_command([*command, "--output", "p.parquet"], cwd=tmp_path)
    assert (
        ended.code == 1 and "no checkpoint is given, and there is none of this config's runs, so these" in ended.output
    )
    command += ["--ckpt", "none"]
    for devices in ("1", "2"):
        options = ["--output", "p.parquet", "--columns", "{number: 0}", "--devices", devices, "--overwrite"]
        ended = run_command([*command, *options], cwd=tmp_path)
        assert ended.code == 0 and "nothing keeps" not in ended.output, ended.output
        assert "itwinai: 100 samples in p.parquet (100 in" in ended.output
        frame = pd.read_parquet(tmp_path / "p.parquet")
        assert frame["index"].tolist() == frame["number"].map(lambda row: row[0]).tolist() == list(range(100))
    for options, message in (
        (["--output", "p.parquet"], "error: p.parquet exists. Give another name"),
        (["--output", "p.csv"], "error: Predictions cannot be written to 'p.csv'"),
        (["--output", "q.parquet", "--split", "test"], "error: --split test: Predicted has no test_dataloader"),
        (["--output", "q.parquet", "--columns", "id"], "requests 'id', which the batches do not have"),
        (
            ["--output", "q.parquet", "--batch-size", "0"],
            "error: batch_size must be a number of samples or 'auto'; got 0",
        ),
    ):
        ended = run_command([*command, *options], cwd=tmp_path)
        assert ended.code == 1 and message in ended.output and len(ended.output.splitlines()) <= 12, ended.output


def test_predictions_are_verified_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "p.parquet"
    trainer = make_trainer("auto", 1, callbacks=PredictionWriter(output, columns={"target": 1}))
    trainer.predict(Regression(), loader(8, samples=20))
    assert main(["predictions", "verify", str(output)]) == 0
    assert main(["predictions", "inspect", str(output)]) == 0
    printed = capsys.readouterr().out
    assert f"{output}: whole, 20 samples" in printed and re.search(
        r"target +float\[1\]\n +prediction +float\n", printed
    )
    output.write_bytes(output.read_bytes()[:-1])
    assert main(["predictions", "verify", str(output), str(tmp_path / "q.parquet")]) == 1
    printed = capsys.readouterr().out
    assert "it is cut off, or was changed" in printed and f"There is no {tmp_path}/q.parquet" in printed
