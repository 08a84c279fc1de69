"""`itwinai config`: the schema accepts every config of the repository and refuses typos; keys are explained."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from itwinai.cli.config.pipeline_schema import pipeline_schema
from itwinai.cli.config.schema import config_schema
from itwinai.cli.main import main
from itwinai.config.source import given_by, read_config
from tests.conftest import REPOSITORY

DIGITS = REPOSITORY / "examples" / "digits"
# Sections of CI and of sites are no configs of runs.
CONFIGS = sorted(
    path.relative_to(REPOSITORY)
    for pattern in ("examples/**/*.yaml", "itwinai/cli/init_templates/*/*.yaml", "tests/support/**/config.yaml")
    for path in REPOSITORY.glob(pattern)
    if not {"runs", "searches", "benchmarks", "sites"} & set(path.parts)
    and path.name not in ("resolved-config.yaml", "pipeline.yaml")
)
MODULES = ("model", "data", "basins")


@contextmanager
def classes_of(folder: Path) -> Iterator[None]:
    """Let the classes of a folder be found as in it; the folders use the same names for their modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        for name in MODULES:
            sys.modules.pop(name, None)
        yield
        for name in MODULES:
            sys.modules.pop(name, None)


def validator(schema: Any) -> jsonschema.Draft7Validator:
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


@pytest.fixture(scope="module")
def generic() -> jsonschema.Draft7Validator:
    with classes_of(REPOSITORY):
        return validator(config_schema())


@pytest.fixture(scope="module")
def of_digits() -> jsonschema.Draft7Validator:
    with classes_of(DIGITS):
        return validator(config_schema(given_by(["-c", "config.yaml"])))


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_configs_of_the_repository_are_accepted(path: Path, generic: jsonschema.Draft7Validator) -> None:
    value = read_config(str(REPOSITORY / path)).plain()
    assert [error.message for error in generic.iter_errors(value)] == []


@pytest.mark.parametrize("folder", ["examples/streamflow", "examples/gan", "itwinai/cli/init_templates/image"])
def test_configs_are_accepted_with_their_own_classes(folder: str) -> None:
    with classes_of(REPOSITORY / folder):
        known = validator(config_schema(given_by(["-c", "config.yaml"])))
        value = read_config("config.yaml").plain()
    assert [error.message for error in known.iter_errors(value)] == []
    argument = next(iter(value["model"]["init_args"]))
    value["model"]["init_args"][f"{argument}x"] = value["model"]["init_args"].pop(argument)
    assert not known.is_valid(value)


def test_what_a_run_leaves_is_accepted(of_digits: jsonschema.Draft7Validator) -> None:
    """All defaults, as ``resolved-config.yaml`` has them."""
    from itwinai.config.lightning_cli import parsed

    with classes_of(DIGITS):
        whole = parsed(["-c", "config.yaml"]).as_dict()
    assert [error.message for error in of_digits.iter_errors(whole)] == []


ACCEPTED = {
    "a class alone": ("trainer.callbacks", ["LearningRateMonitor"]),
    "a short name": ("trainer.callbacks", [{"class_path": "EarlyStopping", "init_args": {"monitor": "val_loss"}}]),
    "a class that is not known": ("trainer.callbacks", [{"class_path": "mine.Mine", "init_args": {"any": 1}}]),
    "several loggers": ("trainer.logger", "csv, mlflow"),
    "no logger": ("trainer.logger", False),
    "a strategy with options": (
        "trainer.strategy",
        {"class_path": "itwinai.strategies.DDPStrategy", "init_args": {"find_unused_parameters": True}},
    ),
    "fractions": ("trainer.limit_train_batches", 0.5),
    "time": ("trainer.max_time", "00:12:00:00"),
    "a search with options": ("tune.scheduler", {"asha": {"grace_period": 3}}),
    "a condition": ("tune.space", {"model.lr": {"uniform": [0, 1], "when": {"model.channels": 8}}}),
    "an option of sbatch": ("slurm.mail-type", "END"),
    "the same with _": ("slurm.gpus-per-node", 4),
    "one strategy": ("benchmark.strategies", "ddp"),
    "an optimizer": ("optimizer", {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}}),
}
REFUSED = {
    "a key of no section": ("trainr", {}),
    "a misspelt argument": ("trainer.max_epoch", 5),
    "text for a number": ("trainer.max_epochs", "five"),
    "a strategy that is none": ("trainer.strategy", "dpp"),
    "a precision that is none": ("trainer.precision", "fp16"),
    "a logger that is none": ("trainer.logger", "csv,mlfow"),
    "text for yes or no": ("trainer.split_batches", "maybe"),
    "a misspelt class of Lightning": (
        "trainer.callbacks",
        [{"class_path": "lightning.pytorch.callbacks.EarlyStoping"}],
    ),
    "a misspelt class of itwinai": ("trainer.callbacks", [{"class_path": "itwinai.callbacks.ModelChekpoint"}]),
    "a short name that is none": ("trainer.callbacks", [{"class_path": "EarlyStoping"}]),
    "callbacks as a mapping": ("trainer.callbacks", {"EarlyStopping": {"monitor": "val_loss"}}),
    "a callback without what it needs": ("trainer.callbacks", [{"class_path": "EarlyStopping"}]),
    "a misspelt argument of a callback": (
        "trainer.callbacks",
        [{"class_path": "EarlyStopping", "init_args": {"monitor": "val_loss", "patiense": 3}}],
    ),
    "class_path misspelt": ("model", {"clas_path": "model.DigitsClassifier"}),
    "arguments without init_args": ("model", {"class_path": "model.DigitsClassifier", "lr": 0.1}),
    "a misspelt argument of the model": ("model.init_args.lrr", 0.1),
    "a value of another kind for the model": ("model.init_args.channels", "many"),
    "a misspelt argument of the data": ("data.init_args.batchsize", 3),
    "an optimizer of torch that is none": ("optimizer", {"class_path": "torch.optim.Addam"}),
    "a setting of tune that is none": ("tune.num_trials", 3),
    "a distribution that is none": ("tune.space", {"model.lr": {"logunifrom": [0, 1]}}),
    "a scheduler that is none": ("tune.scheduler", "ahsa"),
    "a mode that is none": ("tune.mode", "minimum"),
    "an option of slurm that is none": ("slurm.partiton", "gpu"),
    "a setting of benchmark that is none": ("benchmark.worker", 2),
    "no number of workers": ("benchmark.workers", ["two"]),
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return the digits example's config with another value at a path."""
    config: dict[str, Any] = yaml.safe_load((DIGITS / "config.yaml").read_text())
    config |= {"tune": {"metric": "val_loss", "space": {"model.lr": {"choice": [1, 2]}}}}
    *sections, name = path.split(".")
    node = config
    for section in sections:
        node = node.setdefault(section, {})
    node[name] = value
    return config


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_fit_accepts_the_schema_accepts(case: str, of_digits: jsonschema.Draft7Validator) -> None:
    assert [error.message for error in of_digits.iter_errors(changed(*ACCEPTED[case]))] == []


@pytest.mark.parametrize("case", REFUSED)
def test_typos_are_refused(case: str, of_digits: jsonschema.Draft7Validator) -> None:
    errors = list(of_digits.iter_errors(changed(*REFUSED[case])))
    assert errors, case
    # Of the one mistake, and nothing else: it is at its place.
    assert {str(error.absolute_path[0]) if error.absolute_path else "" for error in errors} <= {
        REFUSED[case][0].partition(".")[0],
        "",
    }


def test_another_file_goes_without_the_class(of_digits: jsonschema.Draft7Validator) -> None:
    assert of_digits.is_valid({"model": {"init_args": {"channels": 8}}})
    assert not of_digits.is_valid({"model": {"init_args": {"chanels": 8}}})


def test_the_schema_is_written_with_what_editors_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with classes_of(DIGITS):
        assert main(["config", "--schema", "--output", str(tmp_path / "schema.json")]) == 0
    assert capsys.readouterr().err == f"written: {tmp_path / 'schema.json'}\n"
    schema = json.loads((tmp_path / "schema.json").read_text())
    trainer = schema["properties"]["trainer"]["properties"]
    assert trainer["max_steps"]["default"] == -1 and "optimizer steps" in trainer["max_steps"]["description"]
    model = schema["$defs"]["model.DigitsClassifier"]["properties"]
    assert model["channels"]["type"] == "integer" and model["channels"]["description"]


EXPLAINED = [
    (
        ["trainer.strategy"],
        [
            "trainer.strategy: str | Strategy",
            "an instance of a class from `itwinai.strategies`",
            "accepts  auto, ddp, ",
        ],
        ["default  auto", "value    auto", "from     the default"],
    ),
    (["trainer.strategy", "--strategy", "ray"], [], ["value    ray", "from     the command line (--strategy)"]),
    (["model.lr"], ["model.init_args.lr: float"], ["value    0.005", "from     config.yaml:18"]),
    (["trainer.max_epochs"], ["stop after this many epochs"], ["value    10", "from     config.yaml:6"]),
    (["trainer.logger.save_dir"], ["trainer.logger.init_args.save_dir"], ["value    runs", "from     config.yaml:11"]),
    (["data"], ["DigitsDataModule: "], ["keys     batch_size, split_seed, num_workers"]),
    (["tune.scheduler"], ["the scheduler that stops bad trials early"], ["default  null"]),
    (["benchmark.workers"], ["total numbers of workers"], ["default  none: it is required", "value    not given"]),
    (["slurm.mail-type"], ["sbatch's option mail-type"], ["accepts  text or null"]),
    (["output"], ["(of itwinai validate, test, predict)"], []),
    (["optimizer.lr", "--optimizer", "torch.optim.Adam"], ["learning rate"], ["default  0.001"]),
    (["trainer.callbacks.0.patience", "-c", "{more}"], [], ["value    7", "from     {more}:6"]),
    (["trainer.callbacks.0.monitor", "-c", "{more}"], ["quantity to be monitored"], ["from     {more}:5"]),
    (["trainer"], ["Arguments of ItwinaiTrainer."], ["from     config.yaml:4"]),
]
UNKNOWN = [
    (["trainer.maxepochs"], "'trainer' has no 'maxepochs'. Did you mean 'trainer.max_epochs'?"),
    (["max_epochs"], "There is no 'max_epochs'. Did you mean 'trainer.max_epochs'?"),
    (["modle.lr"], "There is no 'modle.lr'. Did you mean 'model'?"),
    (["model.chanels"], "DigitsClassifier has no argument 'chanels'. Did you mean 'model.channels'?"),
    (["tune.num_trials"], "'tune' has no 'num_trials'."),
    (["optimizer.lr"], "optimizer.lr is an argument of the class of a Optimizer, and the config does not name one"),
    (
        ["trainer.callbacks.monitor", "-c", "{more}"],
        "trainer.callbacks is a list of 1. Say which of them: trainer.call",
    ),
    (["trainer.max_epochs.x"], "There is nothing in trainer.max_epochs, which is a whole number or null."),
    (["model.lr", "--model.lr=1", "--trainer.foo=2"], "--trainer.foo: there is no such flag."),
    (["model.lr", "-c", "confg.yaml"], "There is no config file confg.yaml."),
]


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("more") / "more.yaml"
    callback = "class_path: EarlyStopping\n    init_args:\n      monitor: val_loss\n      patience: 7\n"
    path.write_text(f"trainer:\n  callbacks:\n  - {callback}")
    return path


def explain(arguments: list[str], more: Path) -> int:
    """Explain a key of the digits example's config, or of another one."""
    with classes_of(DIGITS):
        return main(["config", "--explain", *(one.format(more=more) for one in arguments)])


@pytest.mark.parametrize(("arguments", "told", "rows"), EXPLAINED, ids=lambda one: str(one[0]) if one else "")
def test_keys_are_explained(
    arguments: list[str], told: list[str], rows: list[str], more: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain(arguments, more) == 0
    printed = capsys.readouterr().out
    lines = [line.strip() for line in printed.splitlines()]
    text = " ".join(printed.split())
    assert [one for one in told if " ".join(one.split()) not in text] == [], printed
    assert [one for one in rows if one.format(more=more) not in lines] == [], printed
    assert max(map(len, printed.splitlines())) < 120


@pytest.mark.parametrize(("arguments", "told"), UNKNOWN, ids=lambda one: str(one[0]))
def test_keys_that_are_not_there(
    arguments: list[str], told: str, more: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain(arguments, more) == 1
    assert told in capsys.readouterr().err


def test_a_value_of_the_environment(
    more: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    monkeypatch.setenv("PL_FIT__TRAINER__MAX_STEPS", "17")
    assert explain(["trainer.max_steps"], more) == 0
    printed = capsys.readouterr().out
    assert "value    17\n  from     the environment variable PL_FIT__TRAINER__MAX_STEPS\n" in printed
    with classes_of(DIGITS), pytest.raises(SystemExit):  # and it is in force
        main(["fit", "--print_config"])
    assert "max_steps: 17\n" in capsys.readouterr().out


def test_one_thing_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--schema", "--explain", "model"]):
        with pytest.raises(SystemExit):
            main(["config", *arguments])
        assert "give one of --explain KEY, --schema and --adopt CONFIG" in capsys.readouterr().err


STEPS = """
from pathlib import Path
from itwinai.pipelines import OutputFolder


def prepare(raw: Path, out: OutputFolder, parts: int = 3) -> Path:
    return out
"""
PIPELINE = """
folder: runs
steps:
  prepare:
    class_path: prepared.prepare
    init_args: {raw: raw.csv, parts: 3}
  train:
    fit: [config.yaml, large.yaml]
    overrides: {data.path: "${steps.prepare}"}
    after: prepare
    slurm: {nodes: 2}
  predict:
    predict: "${steps.train.config}"
    ckpt: "${steps.train.checkpoint}"
"""


def test_schema_of_pipelines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "prepared.py").write_text(STEPS)
    (tmp_path / "pipeline.yaml").write_text(PIPELINE)
    assert main(["config", "--schema", "--pipeline"]) == 0
    own, general = validator(json.loads(capsys.readouterr().out)), validator(pipeline_schema())
    drought = yaml.safe_load((REPOSITORY / "examples/drought/configs/pipeline.yaml").read_text())
    for value, schema in ((yaml.safe_load(PIPELINE), own), (yaml.safe_load(PIPELINE), general), (drought, general)):
        assert [error.message for error in schema.iter_errors(value)] == []
    for old, new in {
        "parts: 3": "part: 3",
        "raw: raw.csv, parts: 3": "parts: 3",  # raw is needed
        "parts: 3}": "parts: many}",
    }.items():
        wrong = yaml.safe_load(PIPELINE.replace(old, new))
        assert general.is_valid(wrong) and not own.is_valid(wrong), new
    for old, new in {
        "fit:": "fti:",
        "nodes: 2": "ndoes: 2",
        "after:": "afer:",
        "folder:": "foldr:",
        "steps:": "stesp:",
        '    ckpt: "${steps.train.checkpoint}"': "",
    }.items():
        assert not general.is_valid(yaml.safe_load(PIPELINE.replace(old, new, 1))), new
    with pytest.raises(SystemExit):
        main(["config", "--explain", "model", "--pipeline"])
