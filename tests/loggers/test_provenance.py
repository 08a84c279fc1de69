"""A document of W3C PROV that is whole at any time: what a run has used, and what it has generated."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import warnings
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import Callback
from prov.model import ProvDocument
from torch.utils.data import DataLoader, TensorDataset

from itwinai import ItwinaiTrainer
from itwinai.callbacks import ModelCheckpoint
from itwinai.checkpoints.portable_file import read_manifest
from itwinai.errors import ConfigurationError
from itwinai.loggers import ProvenanceLogger
from itwinai.run_info.git import Code
from itwinai.run_info.run import collect_facts
from tests.conftest import start_script
from tests.support.cases import Regression, loader, make_trainer

CODE = Code("0123456789abcdef0123456789abcdef01234567", "trunk", True, "https://me:***@host/a.git", "/home/me/a")

# What W3C's member submission on PROV-JSON asks of each kind of record that we write.
REQUIRED = {
    "entity": (),
    "activity": (),
    "agent": (),
    "used": ("prov:activity", "prov:entity"),
    "wasGeneratedBy": ("prov:entity", "prov:activity"),
    "wasDerivedFrom": ("prov:generatedEntity", "prov:usedEntity"),
    "wasAssociatedWith": ("prov:activity", "prov:agent"),
    "wasInformedBy": ("prov:informed", "prov:informant"),
    "actedOnBehalfOf": ("prov:delegate", "prov:responsible"),
}
KIND_OF_END = {
    "prov:entity": "entity",
    "prov:generatedEntity": "entity",
    "prov:usedEntity": "entity",
    "prov:activity": "activity",
    "prov:informed": "activity",
    "prov:informant": "activity",
    "prov:agent": "agent",
    "prov:delegate": "agent",
    "prov:responsible": "agent",
}


def is_declared(name: str, prefixes: dict[str, str]) -> bool:
    prefix, colon, local = name.partition(":")
    return bool(colon and local) and (prefix in prefixes or prefix in ("prov", "xsd"))


def check_value(value: Any, prefixes: dict[str, str]) -> None:
    if isinstance(value, dict):
        assert set(value) in ({"$", "type"}, {"$", "lang"}) and isinstance(value["$"], str), value
        assert is_declared(value.get("type", "xsd:string"), prefixes), value
    else:
        assert isinstance(value, str | bool | int | float), value


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return a document after it was compared with the structure that PROV-JSON prescribes."""
    content = json.loads(path.read_text())
    prefixes = content["prefix"]
    assert prefixes["itwinai"] == "https://itwinai.readthedocs.io/prov#"
    assert all(re.fullmatch(r"[a-z_0-9]+", prefix) and isinstance(uri, str) for prefix, uri in prefixes.items())
    assert set(content) <= {"prefix", *REQUIRED}
    for kind, required in REQUIRED.items():
        for identifier, record in content.get(kind, {}).items():
            assert is_declared(identifier, {**prefixes, "_": ""}), identifier
            assert set(required) <= set(record), record
            for name, value in record.items():
                assert is_declared(name, prefixes), name
                if name in KIND_OF_END:
                    assert value in content[KIND_OF_END[name]], f"{kind} of {value}, which is not there"
                elif name in ("prov:startTime", "prov:endTime"):
                    assert datetime.fromisoformat(value).tzinfo is not None
                else:
                    for each in value if isinstance(value, list) else [value]:
                        check_value(each, prefixes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the library warns of what its next version will refuse
        document = ProvDocument.deserialize(str(path))
        assert ProvDocument.deserialize(content=document.serialize()) == document
    return content


def value_of(value: Any) -> Any:
    """Return the number, text or name in a value of PROV-JSON."""
    if not isinstance(value, dict):
        return value
    kinds = {"xsd:double": float, "xsd:int": int, "xsd:long": int}
    return kinds.get(value["type"], str)(value["$"])


def of_type(content: dict[str, dict[str, Any]], name: str) -> dict[str, dict[str, Any]]:
    """Return entities or activities of one of our classes, by identifier, with plain values."""
    records = {**content.get("entity", {}), **content.get("activity", {})}
    return {
        identifier: {key: value_of(value) for key, value in record.items()}
        for identifier, record in records.items()
        if value_of(record.get("prov:type")) == f"itwinai:{name}"
    }


def relations(content: dict[str, dict[str, Any]], kind: str) -> set[tuple[str, str]]:
    first, second = REQUIRED[kind]
    pairs = [(record[first], record[second]) for record in content.get(kind, {}).values()]
    assert len(set(pairs)) == len(pairs), "a relation is there twice"
    return set(pairs)


class Describing(Callback):
    """Hands the facts to the logger, as LoggingCallback does."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            facts = replace(collect_facts(trainer), code=CODE)
            for logger in trainer.loggers:
                assert isinstance(logger, ProvenanceLogger)
                logger.describe(trainer, facts)


class Noisy(Regression):
    """Has hyperparameters, a metric whose name needs quoting, and one that is not finite."""

    def __init__(self, hidden: int = 16, api_key: str = "s3cret", layers: tuple[int, ...] = (1, 2)) -> None:
        super().__init__()
        self.save_hyperparameters()

    def on_train_epoch_end(self) -> None:
        self.log("odd name {1}: %", 1.0)
        self.log("infinite", float("inf"))


class Digits(L.LightningDataModule):
    """Has arguments, one of them secret."""

    def __init__(self, batch_size: int, url: str = "https://me:s3cret@host/data") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        return loader(self.batch_size)

    val_dataloader = train_dataloader


class Reads(Callback):
    """Reads the document when training begins."""

    def __init__(self) -> None:
        self.activities: list[str] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(trainer.logger, ProvenanceLogger):
            self.activities = list(read(trainer.logger.path)["activity"])


def fitted(
    logger: ProvenanceLogger, strategy: str = "auto", devices: int = 1, epochs: int = 2, **options: Any
) -> ItwinaiTrainer:
    saving = ModelCheckpoint(monitor="val_loss", save_last=True, save_top_k=1)
    trainer = make_trainer(
        strategy,
        devices,
        logger=logger,
        callbacks=[Describing(), Reads(), saving],
        enable_checkpointing=True,
        max_epochs=epochs,
        log_every_n_steps=1,
    )
    trainer.fit(Noisy(), datamodule=Digits(8 // devices), **options)
    return trainer


@pytest.mark.parametrize(("strategy", "devices"), [("auto", 1), ("ddp", 2)])
def test_document_of_a_fit(strategy: str, devices: int, tmp_path: Path) -> None:
    logger = ProvenanceLogger(
        tmp_path, agent="https://orcid.org/0000-0002-1825-0097", organisation="https://ror.org/05a28rw58"
    )
    trainer = fitted(logger, strategy, devices)
    assert (
        list(tmp_path.rglob("provenance*.json")) == [tmp_path / "provenance/version_0/provenance.json"] == [logger.path]
    )
    assert "s3cret" not in logger.path.read_text()
    content = read(logger.path)

    (run,) = of_type(content, "Run").values()
    assert run["itwinai:status"] == "success"
    assert datetime.fromisoformat(run["prov:startTime"]) < datetime.fromisoformat(run["prov:endTime"])
    assert (run["itwinai:launch/world_size"], run["itwinai:precision"]) == (devices, "32-true")
    assert list(content["activity"]) == ["run:run"]

    used = {
        "Data": {"itwinai:class": "tests.loggers.test_provenance.Digits", "setting:url": "https://me:***@host/data"},
        "Configuration": {"setting:hidden": 16, "setting:api_key": "***", "setting:layers": "[1, 2]"},
        "Code": {"itwinai:commit": CODE.commit, "itwinai:dirty": True, "itwinai:branch": "trunk"},
        "Environment": {"package:torch": version("torch"), "package:itwinai": version("itwinai")},
    }
    for kind, wanted in used.items():
        ((identifier, record),) = of_type(content, kind).items()
        assert record.items() >= wanted.items()
        assert ("run:run", identifier) in relations(content, "used")
    assert len(relations(content, "used")) == len(used)

    metrics = {record["prov:label"]: record for record in of_type(content, "Metric").values()}
    assert {"val_loss", "train_loss", "odd name {1}: %", "infinite"} <= set(metrics) and "epoch" not in metrics
    assert metrics["val_loss"]["prov:value"] == pytest.approx(float(trainer.callback_metrics["val_loss"]))
    assert (metrics["val_loss"]["itwinai:step"], metrics["val_loss"]["itwinai:points"]) == (25, 2)
    assert metrics["infinite"]["prov:value"] == float("inf")

    checkpoints = {Path(record["itwinai:path"]): record for record in of_type(content, "Checkpoint").values()}
    assert set(checkpoints) == set((tmp_path / "provenance/version_0/checkpoints").iterdir())
    assert sorted(record["itwinai:role"] for record in checkpoints.values()) == ["best", "last"]
    for path, record in checkpoints.items():
        manifest = read_manifest(path)
        assert manifest is not None
        assert (record["itwinai:size"], record["itwinai:contentSha256"]) == (path.stat().st_size, manifest.sha256)
        assert record["itwinai:world_size"] == devices

    generated = {*of_type(content, "Metric"), *of_type(content, "Checkpoint")}
    assert relations(content, "wasGeneratedBy") == {(identifier, "run:run") for identifier in generated}
    assert relations(content, "wasDerivedFrom") == {(identifier, "run:data-1") for identifier in generated}

    program = f"itwinai:software-{version('itwinai')}"
    agents = {
        program: "prov:SoftwareAgent",
        "orcid:0000-0002-1825-0097": "prov:Person",
        "ror:05a28rw58": "prov:Organization",
    }
    assert {name: value_of(agent["prov:type"]) for name, agent in content["agent"].items()} == agents
    assert content["prefix"]["orcid"] == "https://orcid.org/"
    assert relations(content, "wasAssociatedWith") == {("run:run", agent) for agent in agents}
    assert relations(content, "actedOnBehalfOf") == {("orcid:0000-0002-1825-0097", "ror:05a28rw58")}


def test_resumed_run_that_is_continued_in_its_document(tmp_path: Path) -> None:
    first = ProvenanceLogger(tmp_path, version="run", agent="Jane Doe")
    fitted(first, epochs=1)
    before = read(first.path)
    last = str(tmp_path / "provenance/run/checkpoints/last.ckpt")

    second = ProvenanceLogger(tmp_path, version="run", agent="Jane Doe")
    trainer = fitted(second, epochs=2, ckpt_path=last)
    content = read(second.path)
    assert content["prefix"]["run"] == before["prefix"]["run"]
    assert of_type(content, "Run")["run:run"]["prov:startTime"] == of_type(before, "Run")["run:run"]["prov:startTime"]
    assert of_type(content, "Run")["run:run"]["itwinai:attempts"] == 2
    ((attempt, resumption),) = of_type(content, "Resumption").items()
    assert resumption["itwinai:status"] == "success"
    assert relations(content, "wasInformedBy") == {(attempt, "run:run")}

    (start,) = (name for name in of_type(before, "Checkpoint") if name.endswith("last.ckpt"))
    assert (attempt, start) in relations(content, "used")
    assert (start, "run:run") in relations(content, "wasGeneratedBy")  # that of the first attempt, as it was
    new = {name for name, by in relations(content, "wasGeneratedBy") if by == attempt}
    assert {(name, start) for name in new} <= relations(content, "wasDerivedFrom")
    assert of_type(content, "Metric").items() >= of_type(before, "Metric").items()
    newest = of_type(content, "Metric")["run:metric-2/val_loss"]
    assert newest["prov:value"] == pytest.approx(float(trainer.callback_metrics["val_loss"]))
    assert {agent for _, agent in relations(content, "wasAssociatedWith")} == set(content["agent"])
    assert content["agent"]["run:person-Jane%20Doe"]["prov:label"] == "Jane Doe"

    trainer.fit(Noisy(), datamodule=Digits(8))  # the third, in the same process, and not resumed
    content = read(second.path)
    assert list(of_type(content, "Attempt")) == ["run:attempt-3"]
    assert of_type(content, "Run")["run:run"]["itwinai:attempts"] == 3


def test_run_that_resumes_from_a_checkpoint_of_another(tmp_path: Path) -> None:
    fitted(ProvenanceLogger(tmp_path), epochs=1)
    path = tmp_path / "provenance/version_0/checkpoints/last.ckpt"
    logger = ProvenanceLogger(tmp_path)
    trainer = fitted(logger, epochs=2, ckpt_path=str(path))
    assert logger.version == 1
    (reads,) = (callback for callback in trainer.callbacks if isinstance(callback, Reads))
    assert reads.activities == ["run:run", "run:attempt-1"]  # known from the beginning
    content = read(logger.path)
    start = of_type(content, "Checkpoint")["run:checkpoint-0/last.ckpt"]
    manifest = read_manifest(path)
    assert manifest is not None
    assert (start["itwinai:path"], start["itwinai:contentSha256"]) == (str(path), manifest.sha256)
    assert list(of_type(content, "Resumption")) == ["run:attempt-1"]
    assert ("run:attempt-1", "run:checkpoint-0/last.ckpt") in relations(content, "used")
    assert "run:checkpoint-0/last.ckpt" not in {name for name, _ in relations(content, "wasGeneratedBy")}


def test_loaders_without_a_datamodule_and_no_facts(tmp_path: Path) -> None:
    logger = ProvenanceLogger(tmp_path)
    trainer = make_trainer("auto", 1, logger=logger, max_epochs=1, callbacks=[Describing()])
    trainer.fit(Noisy(), loader(8), loader(8))
    (data,) = of_type(read(logger.path), "Data").values()
    assert data["itwinai:class"] == f"{TensorDataset.__module__}.TensorDataset"
    assert (data["setting:samples"], data["setting:batch_size"]) == (103, 8)

    undescribed = ProvenanceLogger(tmp_path, name="", version=7)
    trainer = make_trainer("auto", 1, logger=undescribed, max_epochs=1)
    trainer.fit(Noisy(), loader(8))
    trainer.test(trainer.lightning_module, loader(8), verbose=False)
    content = read(tmp_path / "version_7" / "provenance.json")
    assert of_type(content, "Run")["run:run"]["itwinai:status"] == "success"
    assert of_type(content, "Configuration")["run:config-1"]["setting:hidden"] == 16
    assert {"run:metric-1/train_loss", "run:metric-1/val_error"} <= set(of_type(content, "Metric"))
    assert list(content["activity"]) == ["run:run"]  # the evaluation belongs to it


class Fails(Noisy):
    """Fails in the second epoch."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            raise RuntimeError("on purpose")


def test_failed_fit(tmp_path: Path) -> None:
    logger = ProvenanceLogger(tmp_path)
    saving = ModelCheckpoint(every="1epochs")
    callbacks = [Describing(), saving]
    trainer = make_trainer("auto", 1, logger=logger, callbacks=callbacks, enable_checkpointing=True, max_epochs=2)
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.fit(Fails(), loader(8))
    content = read(logger.path)
    run = of_type(content, "Run")["run:run"]
    assert run["itwinai:status"] == "failed" and "prov:endTime" in run
    (saved,) = of_type(content, "Checkpoint").values()
    assert saved["itwinai:path"] == saving.best_model_path
    assert "itwinai:contentSha256" in saved  # it was being written when the run failed


KILLED = """
import os, signal, sys
from pathlib import Path
from lightning.pytorch import Callback
from tests.loggers.test_provenance import Describing, ModelCheckpoint, Noisy, ProvenanceLogger, loader, make_trainer

class Kills(Callback):
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)

logger = ProvenanceLogger(sys.argv[1])
callbacks = [Describing(), ModelCheckpoint(every="1epochs", keep=2, background=False), Kills()]
trainer = make_trainer("auto", 1, logger=logger, callbacks=callbacks, enable_checkpointing=True, max_epochs=3)
trainer.fit(Noisy(), loader(8))
"""


def test_killed_run_leaves_a_document_that_says_running(tmp_path: Path) -> None:
    process = start_script(["-c", KILLED, str(tmp_path)], tmp_path / "output")
    assert process.wait(timeout=240) == -signal.SIGKILL, (tmp_path / "output").read_text()
    content = read(tmp_path / "provenance/version_0/provenance.json")
    run = of_type(content, "Run")["run:run"]
    assert run["itwinai:status"] == "running" and "prov:endTime" not in run
    paths = {record["itwinai:path"] for record in of_type(content, "Checkpoint").values()}
    assert (
        paths == {str(path) for path in (tmp_path / "provenance/version_0/checkpoints").iterdir()} and len(paths) == 2
    )


def test_checkpoints_that_are_removed_later(tmp_path: Path) -> None:
    logger = ProvenanceLogger(tmp_path)
    callback = ModelCheckpoint(tmp_path, monitor="x")
    for step in range(3):
        path = tmp_path / f"{step}.ckpt"
        torch.save({}, path)
        if step == 2:
            os.unlink(tmp_path / "0.ckpt")
        callback.best_k_models = {str(path): torch.tensor(0.0)}
        callback.best_model_path = str(path)
        logger.after_save_checkpoint(callback)
    content = of_type(read(logger.path), "Checkpoint")
    assert {name: record.get("itwinai:role") for name, record in content.items()} == {
        "run:checkpoint-1/1.ckpt": None,
        "run:checkpoint-1/2.ckpt": "best",
    }
    assert all("itwinai:contentSha256" not in record and record["itwinai:size"] > 0 for record in content.values())
    os.unlink(tmp_path / "1.ckpt")
    logger.finalize("success")
    assert list(of_type(read(logger.path), "Checkpoint")) == ["run:checkpoint-1/2.ckpt"]


def test_same_name_in_several_folders(tmp_path: Path) -> None:
    logger = ProvenanceLogger(tmp_path)
    callback = ModelCheckpoint(tmp_path)
    for folder in ("a", "b", "c"):
        path = tmp_path / folder / "last.ckpt"
        path.parent.mkdir()
        path.touch()
        callback.best_k_models[str(path)] = torch.tensor(0.0)
    logger.after_save_checkpoint(callback)
    content = of_type(read(logger.path), "Checkpoint")
    assert {record["itwinai:path"]: name for name, record in content.items()} == {
        str(tmp_path / "a" / "last.ckpt"): "run:checkpoint-1/last.ckpt",
        str(tmp_path / "b" / "last.ckpt"): "run:checkpoint-1/last.ckpt-2",
        str(tmp_path / "c" / "last.ckpt"): "run:checkpoint-1/last.ckpt-3",
    }


def test_document_of_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    for number, text in enumerate(('{"prefix": {}}', "no json", '{"entity": 3}')):
        path = tmp_path / f"provenance/version_{number}/provenance.json"
        path.parent.mkdir(parents=True)
        path.write_text(text)
        with pytest.raises(ConfigurationError, match="is not a document that itwinai has written"):
            ProvenanceLogger(tmp_path, version=number).log_metrics({"a": 1.0})
        assert path.read_text() == text


def test_disk_that_is_full_later_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = ProvenanceLogger(tmp_path)
    logger.log_metrics({"a": 1.0}, 1)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.warns(UserWarning, match="out of date: .*No space left"):
            logger.log_hyperparams({"b": 1})
        with pytest.raises(OSError, match="No space left"):
            ProvenanceLogger(tmp_path, version="new").log_hyperparams({"b": 1})
    assert [path.name for path in logger.path.parent.iterdir()] == ["provenance.json"]  # nothing half written
    logger.finalize("success")
    assert of_type(read(logger.path), "Configuration")["run:config-1"]["setting:b"] == 1


def test_logger_that_has_logged_nothing_writes_nothing_and_can_be_pickled(tmp_path: Path) -> None:
    logger = pickle.loads(pickle.dumps(ProvenanceLogger(tmp_path)))
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == []
    trainer = make_trainer("auto", 1)
    logger.describe(trainer, collect_facts(trainer))
    copied = pickle.loads(pickle.dumps(logger))
    copied.finalize("failed")
    copied.finalize("success")  # as in a process that has launched others, which have ended the run already
    assert of_type(read(logger.path), "Run")["run:run"]["itwinai:status"] == "failed"


def test_values_between_two_fits_leave_the_end_of_the_first(tmp_path: Path) -> None:
    logger = ProvenanceLogger(tmp_path)
    trainer = make_trainer("auto", 1)
    for status in ("success", "failed", "success"):
        logger.describe(trainer, collect_facts(trainer))
        logger.finalize(status)
        logger.log_metrics({"a": 1.0})
        assert of_type(read(logger.path), "Run")["run:run"]["itwinai:status"] == "running"
    logger.describe(trainer, collect_facts(trainer))
    attempts = of_type(read(logger.path), "Attempt")
    assert [record["itwinai:status"] for record in attempts.values()] == ["failed", "success", "running"]
    assert ["prov:endTime" in record for record in attempts.values()] == [True, True, False]


def test_run_that_others_continue(tmp_path: Path) -> None:
    for agent in ("https://example.org/people/a", "https://elsewhere.org/people/b", "https://example.org/people/a/"):
        logger = ProvenanceLogger(tmp_path, version="run", agent=agent)
        logger.log_metrics({"a": 1.0}, 1)
        logger.finalize("success")
    content = read(logger.path)
    spaces = {content["prefix"][prefix]: prefix for prefix in ("person", "person_1")}
    assert {name for name in content["agent"] if "software" not in name} == {
        f"{spaces['https://example.org/people/']}:a",
        f"{spaces['https://elsewhere.org/people/']}:b",
    }
    assert set(content["activity"]) == {"run:run", "run:attempt-2", "run:attempt-3"}


def test_checkpoint_elsewhere_is_named_without_its_login(tmp_path: Path) -> None:
    logger = ProvenanceLogger(tmp_path)
    callback = ModelCheckpoint(tmp_path)
    callback.best_model_path = "s3://me:s3cret@bucket/a.ckpt"
    logger.after_save_checkpoint(callback)
    logger.finalize("success")
    (saved,) = of_type(read(logger.path), "Checkpoint").values()
    assert (saved["itwinai:path"], saved.get("itwinai:size")) == ("s3://me:***@bucket/a.ckpt", None)
