"""What installed packages add: found without imports, used by name, and harmless where they are not used.

The packages of `tests/support/plugin_packages` and one that `itwinai plugins new` has written are built as wheels and
installed into a folder. Everything below finds them there, as it would in site-packages.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger

from itwinai import ItwinaiTrainer
from itwinai.cli import doctor
from itwinai.cli.doctor.child_process import Outcome
from itwinai.cli.doctor.report import format_end
from itwinai.cli.doctor.strategy_check import judge
from itwinai.cli.main import main, unknown_command, usage
from itwinai.cli.plugins_new import write_plugin
from itwinai.config.lightning_cli import parsed
from itwinai.errors import ConfigurationError, PluginError
from itwinai.loggers.registry import make_loggers
from itwinai.plugins import find_plugin, find_plugins
from itwinai.strategies import DDPStrategy
from itwinai.strategies.registry import find_entry, make_strategy, uses_ray
from itwinai.tune.trial_loggers import TrialContext, logger_entries
from tests.conftest import REPOSITORY, RunCommand, python
from tests.support.cases import make_trainer

PACKAGES = REPOSITORY / "tests" / "support" / "plugin_packages"
MODEL = {"class_path": "tests.support.tuned.Regression"}


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the packages as pip has installed them from their wheels."""
    sources, folder = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("installed")
    shutil.copytree(PACKAGES, sources, dirs_exist_ok=True)  # pip builds in the folder of the sources
    write_plugin("soil-moisture", sources / "new")
    pip = ["-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    names = ("good", "broken", "colliding", "new")
    subprocess.run(python(*pip, "--target", str(folder), *(str(sources / name) for name in names)), check=True)
    # setuptools refuses to build this; other tools do not.
    with next(folder.glob("itwinai_broken*.dist-info")).joinpath("entry_points.txt").open("a") as file:
        file.write("[itwinai.examples]\nspaced = not a:module path\n")
    return folder


@pytest.fixture
def on_path(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let this process find them too."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(installed)])
    return installed


def fake_package(folder: Path, name: str, version: str, entry_points: str) -> None:
    """Write what an installer leaves of a package."""
    place = folder / f"{name}-{version}.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nName: of the text\n")
    (place / "entry_points.txt").write_text(entry_points)


def test_the_first_package_of_a_name_on_the_path_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "[console_scripts]\nother = a:b\n\n[itwinai.commands]\n# a comment\nhello = one.cli:main [extra]\nno value\n"
    fake_package(tmp_path / "first", "My_Plugin", "2.0", text)
    fake_package(tmp_path / "second", "my.plugin", "1.0", text)
    monkeypatch.setattr(sys, "path", [*(str(tmp_path / name) for name in ("first", "none", "second"))])
    plugin, without_value = find_plugins()
    assert (plugin.group, plugin.name, plugin.source) == ("itwinai.commands", "hello", "My_Plugin 2.0")
    assert plugin.class_path == "one.cli.main"
    with pytest.raises(
        PluginError, match="The command 'no value' of My_Plugin 2.0 cannot be used: '' is not of the form"
    ):
        without_value.load()
    assert find_plugins("itwinai.strategies") == [] and find_plugin("itwinai.commands", "other") is None


def test_a_look_up_imports_nothing(installed: Path, run_command: RunCommand) -> None:
    code = (
        "import sys; from itwinai.cli.main import main; main(['--help']); main(['gret'])\n"
        "print([name for name in sys.modules if name.startswith(('itwinai_', 'torch', 'importlib.metadata'))])"
    )
    ended = run_command(python("-c", code), PYTHONPATH=f"{REPOSITORY}:{installed}")
    assert "commands of plugins:\n  crash          itwinai-broken 0.1\n" in ended.output
    assert "\n  greet          Everything that a plugin can add\n" in ended.output
    assert ended.output.count("\n  fit  ") == 1, "the plugin's command of this name is not there"
    assert "there is no command 'gret'. Did you mean 'greet'?" in ended.output
    assert ended.output.endswith("\n[]\n"), ended.output


def test_commands(on_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["greet"]) == 0 and main(["greet", "to", "--all"]) == 3
    assert "hello to --all [" in capfd.readouterr().out
    assert main(["refuse", "this"]) == 1
    assert capfd.readouterr().err == "error: no thanks to this\n"
    assert main(["shared"]) == 1
    assert "itwinai-broken 0.1 and itwinai-colliding 0.2 both have this name" in capfd.readouterr().err
    assert main(["soil-moisture", "--samples", "8"]) == 0
    assert capfd.readouterr().out.startswith("train      8 samples")


def test_strategies_and_what_they_promise(on_path: Path) -> None:
    strategy = make_strategy("Counted_DDP")
    assert isinstance(strategy, DDPStrategy) and strategy.strategy_name == "counted_ddp"
    entry = find_entry("ray_drifting_ddp")
    assert entry is not None and entry.uses_ray and entry.deviation == "adds 0.1 to every weight"
    around: Any = make_strategy("ray_counted_ddp")
    assert around.strategy_name == "ray_counted_ddp" and uses_ray(around) and uses_ray("ray_counted_ddp")
    assert not uses_ray("counted_ddp")
    # Built-in names and lightning's stay what they are: the plugins of these names cannot even be imported.
    assert type(make_strategy("ddp")) is DDPStrategy and make_strategy("fsdp") is None
    with pytest.raises(ConfigurationError, match=r"Did you mean 'counted_ddp'\? .*ray_horovod, classy, counted_ddp"):
        make_strategy("counted")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("leaves", r"it ends the program when it is imported, with 'no licence' \(.*leaves\.py:1\)"),
        ("silent", "the entry does not say what it promises"),
        ("misnamed", "the entry's name is 'another'"),
        ("ray_classy", "is the class Classy, and not a StrategyEntry"),
    ],
)
def test_a_broken_strategy_is_an_error_where_it_is_used(name: str, reason: str, on_path: Path) -> None:
    message = f"The strategy '{name.removeprefix('ray_')}' of itwinai-broken 0.1 cannot be used: .*{reason}"
    with pytest.raises(PluginError, match=message):
        ItwinaiTrainer(strategy=name)
    with pytest.raises(ConfigurationError, match=reason):
        parsed({"model": MODEL, "trainer": {"strategy": name}})


def test_loggers(on_path: Path, tmp_path: Path) -> None:
    notes, csv = make_loggers("notes, csv", str(tmp_path))
    assert isinstance(notes, CSVLogger) and type(csv) is CSVLogger
    assert notes.log_dir == str(tmp_path / "lightning_logs/notes-notes" / "version_0")
    (made,) = make_trainer("auto", 1, logger="notes", default_root_dir=tmp_path).loggers
    assert type(made) is type(notes)
    for name, reason in (("ghost", "AttributeError"), ("text", "is not a class of Lightning's Logger")):
        with pytest.raises(PluginError, match=reason):
            make_loggers(name, str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"no logger 'note'\. Did you mean 'notes'\?"):
        make_loggers("note", str(tmp_path))
    context = TrialContext("digits", tmp_path, "id", "trial_1", tmp_path / "trial_1", {})
    for entry, name in zip(logger_entries("notes,bare", context), ("NotesLogger", "BareLogger"), strict=True):
        assert entry["class_path"] == f"itwinai_good.loggers.{name}"
        assert entry["init_args"]["save_dir"] == str(tmp_path / "trial_1")


def test_callbacks_by_short_names(on_path: Path, tmp_path: Path) -> None:
    full = "itwinai_good.callbacks.BatchNotes"
    callback = {"class_path": "BatchNotes", "init_args": {"folder": str(tmp_path)}}
    early = {"class_path": "EarlyStopping", "init_args": {"monitor": "loss"}}
    config = parsed({"model": MODEL, "trainer": {"callbacks": [callback, early]}}).as_dict()
    paths = [one["class_path"] for one in config["trainer"]["callbacks"]]
    assert paths == [full, "lightning.pytorch.callbacks.EarlyStopping"]
    flags = ["--model", MODEL["class_path"], "--trainer.callbacks+=BatchNotes"]
    flags += [f"--trainer.callbacks.folder={tmp_path}", "--trainer.callbacks+=ModelSummary"]
    config = parsed(flags).as_dict()
    assert config["trainer"]["callbacks"][0]["class_path"] == full
    assert config["trainer"]["callbacks"][0]["init_args"] == {"folder": str(tmp_path), "every": 1}
    for name, reason in (
        ("Lost", r"No module named 'itwinai_nowhere' \(.*lost\.py:1\)"),
        ("short", "its class is called 'Long'"),
        ("Twice", "itwinai-broken 0.1 and itwinai-colliding 0.2 both have this name"),
    ):
        with pytest.raises(PluginError, match=f"The callback '{name}'.*{reason}"):
            parsed({"model": MODEL, "trainer": {"callbacks": [{"class_path": name}]}})
    with pytest.raises(ConfigurationError, match=r"(?s)'BatchNodes' names no class.* Did you mean 'BatchNotes'\?"):
        parsed({"model": MODEL, "trainer": {"callbacks": [{"class_path": "BatchNodes"}]}})


def test_factories_of_callbacks(on_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning calls them for every trainer, so that every trainer says which one is broken."""
    trainer = make_trainer("auto", 1)
    assert [type(one).__name__ for one in trainer.callbacks].count("FactoryNotes") == 1
    fake_package(tmp_path, "ending", "3", "[lightning.pytorch.callbacks_factory]\nend = ending:make\n")
    (tmp_path / "ending.py").write_text("raise SystemExit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match="of ending 3 cannot be used: it ends the program when it is imported"):
        make_trainer("auto", 1)


TRAIN = """
import json, sys, torch
from pathlib import Path
from tests.support.cases import GLOBAL_BATCH, Regression, loader, make_trainer

weights = {}
for strategy, workers in (("auto", 1), ("counted_ddp", 2), ("drifting_ddp", 2), ("ray_counted_ddp", 2)):
    torch.manual_seed(3)
    module = Regression()
    folder = Path(strategy)
    folder.mkdir()
    trainer = make_trainer(strategy, workers, max_epochs=1, default_root_dir=str(folder.absolute()))
    trainer.fit(module, loader(GLOBAL_BATCH // workers, shuffle=True))
    weights[strategy] = torch.cat([one.detach().flatten() for one in module.parameters()])
    print(strategy, trainer.strategy.strategy_name if workers > 1 else "", getattr(module, "counted", None),
          sorted(path.name for path in folder.iterdir()))
difference = {name: float((one - weights["auto"]).abs().max()) for name, one in weights.items()}
print("JSON" + json.dumps(difference))
"""


def test_strategies_of_plugins_train_in_forked_workers_and_in_rays(
    installed: Path, run_command: RunCommand, tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    ended = run_command(python("train.py"), cwd=tmp_path, PYTHONPATH=f"{REPOSITORY}:{installed}")
    assert ended.code == 0, ended.output
    files = "['factory-0', 'factory-1']"
    for strategy in ("counted_ddp", "ray_counted_ddp"):
        assert f"{strategy} {strategy} 13 {files}" in ended.output, ended.output
    assert "auto  None ['factory-0']" in ended.output
    difference = json.loads(ended.output.rpartition("JSON")[2])
    assert difference["counted_ddp"] < 1e-6 and difference["ray_counted_ddp"] < 1e-6
    assert difference["drifting_ddp"] > 0.5


def test_names_of_plugins_on_the_command_line(installed: Path, run_command: RunCommand, tmp_path: Path) -> None:
    """The config of a package that `itwinai plugins new` has written trains with a strategy, callbacks and a logger."""
    config = next(installed.parent.glob("sources*/new")) / "config.yaml"
    flags = ["--strategy", "counted_ddp", "--devices", "2", "--logger", "notes", "--trainer.max_epochs=1"]
    flags += ["--trainer.callbacks+=BatchNotes", f"--trainer.callbacks.folder={tmp_path}"]
    ended = run_command(
        python("-m", "itwinai.cli.main", "fit", "-c", str(config), *flags),
        cwd=tmp_path,
        PYTHONPATH=f"{REPOSITORY}:{installed}",
    )
    assert ended.code == 0, ended.output
    assert "strategy counted_ddp" in ended.output
    for rank in ("0", "1"):
        assert (tmp_path / f"batches-{rank}").read_text().split() == [str(batch) for batch in range(8)]
    (saved,) = tmp_path.rglob("resolved-config.yaml")
    assert saved.parent == tmp_path / "lightning_logs-notes" / "version_0"
    trainer = yaml.safe_load(saved.read_text())["trainer"]
    assert trainer["strategy"] == "counted_ddp"
    limit, notes = (one["class_path"] for one in trainer["callbacks"])
    assert limit == "itwinai_soil_moisture.callbacks.SoilMoistureLossLimit"
    assert notes == "itwinai_good.callbacks.BatchNotes"


def test_the_tests_of_a_new_package_pass(installed: Path, run_command: RunCommand, tmp_path: Path) -> None:
    """All but the checks that start every strategy or a search; tests/checks has those."""
    new = next(installed.parent.glob("sources*/new"))
    left_out = "not same_weights and not hpo_trial and not portable_checkpoint"
    ended = run_command(
        python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", left_out, "tests"),
        cwd=new,
        fresh=True,
        PYTHONPATH=f"{REPOSITORY}:{installed}",
    )
    assert ended.code == 0 and "10 passed, 3 deselected" in ended.output, ended.output


def test_doctor_knows_them_and_what_they_promise(on_path: Path) -> None:
    assert doctor.strategy_names("counted_ddp,ray_drifting_ddp") == ["counted_ddp", "ray_drifting_ddp"]
    assert doctor.all_names()[-1] == "silent" and doctor.all_names().count("ddp") == 1
    speed = {"latency_us": 1.0, "bandwidth_gb_s": 1.0, "bus_bandwidth_gb_s": 1.0, "start_s": 1.0}
    facts = {"workers": 2, "device": "cpu", **speed}
    same, drifting = (
        judge("one", Outcome({"measured": {**facts, "weight_difference": 0.3, "deviation": deviation}}, "", ""))
        for deviation in ("", "adds 0.1 to every weight")
    )
    assert same.error.startswith("the weights after 3 steps differ") and not drifting.error
    end = format_end([drifting], [])
    assert "one: adds 0.1 to every weight, and differs from one process by 3e-01" in end
    assert "as with one process" not in end  # nothing here promises that


def test_list(installed: Path, run_command: RunCommand) -> None:
    ended = run_command(python("-m", "itwinai.cli.main", "plugins"), fresh=True, PYTHONPATH=f"{REPOSITORY}:{installed}")
    assert ended.code == 1, ended.output
    lines = [" ".join(line.split()) for line in ended.output.splitlines()]
    for line in (
        "counted_ddp itwinai-good 1.2.3 itwinai_good.strategies:COUNTED same weights as one process",
        "drifting_ddp itwinai-good 1.2.3 itwinai_good.strategies:DRIFTING adds 0.1 to every weight",
        "BatchNotes itwinai-good 1.2.3 itwinai_good.callbacks:BatchNotes Note batches in a file for each rank.",
        "notes itwinai-good 1.2.3 itwinai_good.callbacks:make_callbacks Return what every trainer gets.",
        "ours itwinai-good 1.2.3 itwinai_good.sites harbour.yaml, mare.yaml",
        "tiny itwinai-good 1.2.3 itwinai_good.examples.tiny config.yaml",
        "all itwinai-good 1.2.3 itwinai_good.examples Begin with `itwinai greet`; configs are in tiny.",
        "soil-moisture itwinai-soil-moisture 0.1.0 itwinai_soil_moisture.cli:main Describe the data.",
    ):
        assert line in lines, ended.output
    for name, reason in {
        "crash": "it ends the process when it is imported, with 7",
        "leaves": "it ends the program when it is imported, with 'no licence'",
        "Lost": "ModuleNotFoundError: No module named 'itwinai_nowhere'",
        "ghost": "AttributeError: module 'itwinai_broken.callbacks' has no attribute 'Ghost'",
        "ddp": "'ddp' is a built-in name",
        "fsdp": "'fsdp' is a built-in name",
        "EarlyStopping": "'EarlyStopping' is a built-in name",
        "csv": "'csv' is a built-in name",
        "fit": "'fit' is a built-in name",
        "shared": "itwinai-broken 0.1 and itwinai-colliding 0.2 both have this name",
        "spaced": "'not a:module path' is not of the form package.module:attribute",
        "none": "there are no files *.yaml in",
        "file": "is not a package, whose folder has the files",
    }.items():
        (number, *_) = (n for n, line in enumerate(lines) if line.split()[:1] == [name] and "CANNOT" in line)
        assert reason in f"{lines[number + 1]} {lines[number + 2]}", ended.output
    assert lines[-1].endswith("; 21 cannot be used."), ended.output  # beside others that are installed here


def test_without_plugins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert "commands of plugins" not in usage() and "Did you mean" not in unknown_command("qqqq")
    assert main(["plugins"]) == 0
    assert "itwinai.strategies" in (printed := capfd.readouterr().out) and "plugins new NAME" in printed


def test_new_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plugins", "new", "itwinai-river_flow"]) == 0
    assert "written to itwinai-river-flow" in capfd.readouterr().out
    files = {str(path.relative_to("itwinai-river-flow")) for path in Path("itwinai-river-flow").rglob("*.*")}
    package = "src/itwinai_river_flow"
    assert {"pyproject.toml", "README.md", "config.yaml", "tests/test_module.py", f"{package}/module.py"} <= files
    assert not any("myplugin" in path.read_text().lower() for path in Path().rglob("*") if path.is_file())
    assert len(Path("itwinai-river-flow/README.md").read_text().splitlines()) <= 11
    assert main(["plugins", "new", "river-flow"]) == 1
    assert "error: itwinai-river-flow is there already, and is not overwritten" in capfd.readouterr().err
    assert main(["plugins", "new", "river-flow", "--output", "elsewhere"]) == 0
    for name, message in (
        ("River Flow", "'River Flow' cannot be the name of a plugin.*For example: 'river-flow'"),
        ("3d", "'3d' cannot be the name of a plugin: it takes lower-case letters"),
        ("..", r"'\.\.' cannot be"),
        ("tune", "`itwinai tune` is a command already"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            write_plugin(name, tmp_path / "not")
    assert not Path("not").exists()
    assert sorted(path.name for path in Path().iterdir()) == ["elsewhere", "itwinai-river-flow"]
