"""`itwinai config --schema`: the JSON schema by which editors complete and check configs."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

import docstring_parser
import lightning.pytorch as pl
import torch
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy

from itwinai.benchmark.settings import Settings as BenchmarkSettings
from itwinai.cli.config.accepted import LISTS, accepted_names
from itwinai.cli.config.type_schema import Schema, TypeSchemas
from itwinai.compat.jsonargparse import ParserArgument, parser_arguments
from itwinai.config.errors import classes_here
from itwinai.config.lightning_cli import OUTPUT_ARGUMENTS, config_parser
from itwinai.config.source import CLASS_SECTIONS, Given
from itwinai.slurm.options import SBATCH_OPTIONS, JobOptions
from itwinai.tune.distributions import DISTRIBUTIONS
from itwinai.tune.schedulers import SCHEDULERS
from itwinai.tune.searchers import SEARCHERS
from itwinai.tune.settings import Settings as TuneSettings

DIALECT = "http://json-schema.org/draft-07/schema#"
"""What editors read; later dialects have nothing that is needed here."""

_MANY_PACKAGES = (
    "itwinai.callbacks",
    "itwinai.loggers",
    "itwinai.strategies",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
    "lightning.pytorch.plugins",
    "torch.optim",
    "torch.optim.lr_scheduler",
)
_BASES = {"model": pl.LightningModule, "data": pl.LightningDataModule}


def config_schema(given: Given | None = None) -> Schema:
    """Return the schema of configs.

    Args:
        given: what a config says, for the arguments of the classes that it names; without, those of the classes in
            files of the current folder are known.
    """
    named = list(_named_classes(given)) if given is not None else []
    here = [cls for base in _BASES.values() for path in classes_here(base.__name__) if (cls := _imported(path))]
    schemas = TypeSchemas([*named, *here, *_offered()])
    names = accepted_names()
    tree: Schema = {"properties": {}}
    for one in parser_arguments(config_parser()):
        if not _is_section_or_value(one):
            continue
        if one.name in CLASS_SECTIONS:
            schema = _class_section(schemas, one, given)
        elif one.name in OUTPUT_ARGUMENTS:
            schema = {"description": OUTPUT_ARGUMENTS[one.name][1], **schemas.of(OUTPUT_ARGUMENTS[one.name][0])}
        else:
            schema = schemas.argument(one, names.get(one.name, ()))
            if one.name in LISTS:
                schema = _also_with_commas(schema, names[one.name])
        _put(tree, one.name, schema)
    tree["properties"] |= {"tune": _tune(schemas), "slurm": slurm_schema(schemas), "benchmark": _benchmark(schemas)}
    return {
        "$schema": DIALECT,
        "title": "config of itwinai",
        "type": "object",
        "properties": tree["properties"],
        "additionalProperties": False,
        # JSON pointers have no room for / and ~ in names; class names have none.
        "$defs": dict(sorted(schemas.definitions.items())),
    }


def _is_section_or_value(one: ParserArgument) -> bool:
    return one.type is not None and not one.name.endswith(".help") and one.name not in ("help", "config")


def _put(tree: Schema, path: str, schema: Schema) -> None:
    """Put the schema of an argument at its place in the sections."""
    *sections, name = path.split(".")
    for section in sections:
        empty = {"type": ["object", "null"], "properties": {}, "additionalProperties": False}
        tree = tree["properties"].setdefault(section, empty)
    tree["properties"][name] = schema


def _class_section(schemas: TypeSchemas, one: ParserArgument, given: Given | None) -> Schema:
    """Return the schema of a section for the object of a class; or for the name of the class alone."""
    bases = [hint for hint in typing.get_args(one.type) if isinstance(hint, type) and hint is not type(None)]
    named = None if given is None else given.find(f"{one.name}.class_path")
    default = None if named is None else _imported(named.value)
    parts = [schemas.class_value(base, of_section=True, default=default) for base in bases]
    return {"description": one.help or f"the {one.name}", "anyOf": [*parts, {"type": ["string", "null"]}]}


def _also_with_commas(schema: Schema, names: Sequence[str]) -> Schema:
    """Return the schema of an argument that takes several names in one text too."""
    one = f"({'|'.join(names)})"
    parts = [part for part in schema["anyOf"] if "enum" not in part]
    several = {"type": "string", "pattern": f"^\\s*{one}(\\s*,\\s*{one})*\\s*$"}
    return {**schema, "anyOf": [{"enum": list(names)}, several, *parts]}


def _named_classes(given: Given) -> Iterator[type]:
    """Yield the classes that a config names, wherever they are in it."""
    if isinstance(given.value, list):
        for one in given.value:
            yield from _named_classes(one)
    elif isinstance(given.value, dict):
        for name, one in given.value.items():
            if name == "class_path" and (cls := _imported(one.value)) is not None:
                yield cls
            else:
                yield from _named_classes(one)


def _imported(path: Any) -> type | None:
    """Return the class of a path; None if there is none: `itwinai fit` says why."""
    module, _, name = str(path).rpartition(".")
    with suppress(Exception):  # whatever the user's module raises
        found = getattr(import_module(module), name)
        return found if isinstance(found, type) else None
    return None


def _offered() -> Iterator[type]:
    """Yield the classes of itwinai, Lightning and torch that configs name."""
    schedulers = (torch.optim.lr_scheduler.LRScheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
    bases = (pl.Callback, pl.loggers.Logger, Profiler, Strategy, torch.optim.Optimizer, *schedulers)
    for package in _MANY_PACKAGES:
        module = import_module(package)
        for name in getattr(module, "__all__", dir(module)):
            with suppress(ImportError):  # of an optional package
                found = getattr(module, name, None)
                if isinstance(found, type) and issubclass(found, bases) and found not in bases:
                    yield found


def _settings(schemas: TypeSchemas, cls: type, own: Mapping[str, Schema]) -> Schema:
    """Return the schema of a section whose keys are the fields of a dataclass.

    Args:
        schemas: of types.
        cls: the dataclass, whose docstring says what the fields are.
        own: what fields accept, where their type does not say it all.
    """
    hints = typing.get_type_hints(cls)
    texts = {one.arg_name: one.description or "" for one in docstring_parser.parse(cls.__doc__ or "").params}
    properties: dict[str, Schema] = {}
    for field in dataclasses.fields(cls):
        one: Schema = {"description": " ".join(texts.get(field.name, "").split())}
        one |= own.get(field.name) or schemas.of(hints[field.name])
        if isinstance(field.default, (str, int, float, bool)):
            one["default"] = field.default
        properties[field.name] = one
    summary = (inspect.getdoc(cls) or "").partition("\n")[0]
    return {"description": summary, "type": ["object", "null"], "properties": properties, "additionalProperties": False}


def _one_of(names: Sequence[str]) -> list[Schema]:
    """Return the schemas of a name, and of a mapping of one name to its options."""
    options = {"type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": False}
    return [{"enum": list(names)}, {**options, "properties": {name: {} for name in names}}]


def _tune(schemas: TypeSchemas) -> Schema:
    distributions: dict[str, Schema] = {name: {"type": ["array", "object"]} for name in DISTRIBUTIONS}
    entry = {
        "type": "object",
        "properties": {**distributions, "when": {"type": "object", "description": "values that others must have"}},
        "additionalProperties": False,
        "minProperties": 1,
    }
    mode = {"enum": ["min", "max"]}
    own: dict[str, Schema] = {
        "space": {"type": "object", "additionalProperties": entry, "minProperties": 1},
        "mode": {"anyOf": [mode, {"type": "array", "items": mode}]},
        "search": {"anyOf": _one_of(SEARCHERS)},
        "scheduler": {"anyOf": [*_one_of(SCHEDULERS), {"type": "null"}]},
        "strategy": {"anyOf": [{"enum": list(accepted_names()["trainer.strategy"])}, {"type": "null"}]},
        "report_on": {"type": "string", "pattern": "^(validation|epoch|[0-9]+ ?steps?)$"},
    }
    return _settings(schemas, TuneSettings, own)


def _benchmark(schemas: TypeSchemas) -> Schema:
    def one_or_more(single: Schema) -> Schema:
        return {"anyOf": [single, {"type": "array", "items": single, "minItems": 1}]}

    own: dict[str, Schema] = {
        "strategies": one_or_more({"enum": [name for name in accepted_names()["trainer.strategy"] if name != "auto"]}),
        "workers": one_or_more({"type": "integer", "minimum": 1}),
        "scalings": one_or_more({"enum": ["strong", "weak"]}),
        "axes": {"type": "object", "additionalProperties": {"type": "array", "minItems": 1}},
        "extrapolate": one_or_more({"type": "integer", "minimum": 1}),
    }
    return _settings(schemas, BenchmarkSettings, own)


def slurm_schema(schemas: TypeSchemas) -> Schema:
    """Return the schema of a section ``slurm``, of configs and of pipelines."""
    listed = {"type": ["array", "string"]}
    own: dict[str, Schema] = dict.fromkeys(("modules", "setup", "bind"), listed)
    whole = {"type": ["integer", "string", "null"]}
    own |= dict.fromkeys(("nodes", "gpus_per_node", "tasks_per_node", "cpus_per_task", "max_requeues"), whole)
    own |= dict.fromkeys(("environment", "sbatch"), {"type": "object"})
    schema = _settings(schemas, JobOptions, own)
    properties = schema["properties"]
    for name in SBATCH_OPTIONS:
        properties[name] = {"description": f"sbatch's option {name}"}
    properties |= {"site": {"type": "string", "description": "name of a site, or auto"}, "name": properties["job-name"]}
    for name in list(properties):  # both are the same to it
        properties.setdefault(name.replace("-", "_"), properties[name])
        properties.setdefault(name.replace("_", "-"), properties[name])
    return schema
