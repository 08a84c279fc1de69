"""`itwinai config --schema --pipeline`: the JSON schema by which editors complete and check pipelines."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from itwinai.cli.config.schema import DIALECT, slurm_schema
from itwinai.cli.config.type_schema import Schema, TypeSchemas
from itwinai.pipelines.step_target import StepTarget
from itwinai.pipelines.steps_file import COMMANDS

_REFERENCE: Schema = {"type": "string", "pattern": r"\$\{steps\.", "description": "what another step returns"}
_NAMES: Schema = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]}


def pipeline_schema(pipeline: Mapping[str, Any] | None = None) -> Schema:
    """Return the schema of pipelines.

    Args:
        pipeline: the values of one, for the arguments of the functions and classes that its steps name.
    """
    schemas = TypeSchemas()
    schemas.definitions["slurm"] = slurm_schema(schemas)
    slurm = {"$ref": "#/$defs/slurm"}
    every: Schema = {
        "after": {"description": "steps that end before it, beside those that it refers to", **_NAMES},
        "inputs": {"description": "files and folders that it reads, beside its arguments", **_NAMES},
        "packages": {"description": "distributions whose versions count, beside those that it imports", **_NAMES},
        "alone": {"description": "whether nothing else runs while it runs", "type": "boolean"},
        "slurm": slurm,
    }
    class_path: Schema = {"description": "a function, or a class with run(), as module.name", "type": "string"}
    own = {"class_path": class_path, "init_args": {"description": "its arguments", "type": ["object", "null"]}}
    known = [_when_named(schemas, path, target) for path, target in _targets(pipeline or {}).items()]
    kinds = [{**_section({**own, **every}, ["class_path"]), **({"allOf": known} if known else {})}]
    for key, path in COMMANDS.items():
        arguments = _arguments(schemas, StepTarget.load(path))
        properties = {key: {**arguments["properties"].pop("config"), "description": "config files"}}
        required = [key, *(name for name in arguments["required"] if name != "config")]
        kinds.append(_section({**properties, **arguments["properties"], **every}, required))
    steps: Schema = {
        "description": "each with a function or class of yours, or a command of itwinai with a config",
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"pattern": "^[A-Za-z0-9_-]+$"},
        "additionalProperties": {"anyOf": kinds},
    }
    folder = {"description": "of the outputs; by default runs/ and the name of the file", "type": "string"}
    return {
        "$schema": DIALECT,
        "title": "pipeline of itwinai",
        **_section({"steps": steps, "folder": folder, "slurm": slurm}, ["steps"]),
        "$defs": dict(sorted(schemas.definitions.items())),
    }


def _section(properties: Schema, required: list[str]) -> Schema:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _targets(pipeline: Mapping[str, Any]) -> dict[str, StepTarget]:
    """Return the functions and classes that steps name and that can be imported; `itwinai run` says why others not."""
    steps = pipeline.get("steps")
    found: dict[str, StepTarget] = {}
    for step in steps.values() if isinstance(steps, Mapping) else ():
        path = step.get("class_path") if isinstance(step, Mapping) else None
        with suppress(Exception):  # whatever the user's module raises
            found[str(path)] = StepTarget.load(str(path))
    return found


def _when_named(schemas: TypeSchemas, path: str, target: StepTarget) -> Schema:
    """Return what holds for a step that names a function or class."""
    arguments = _arguments(schemas, target)
    needed = ["init_args"] if arguments["required"] else []
    if not needed:
        arguments["type"] = ["object", "null"]
    return {
        "if": {"properties": {"class_path": {"const": path}}, "required": ["class_path"]},
        "then": {"properties": {"init_args": arguments}, "required": needed},
    }


def _arguments(schemas: TypeSchemas, target: StepTarget) -> Schema:
    """Return the schema of the arguments of a function or class, each of which may be a reference."""
    properties: Schema = {}
    for name, hint in target.arguments.items():
        one = schemas.of(hint)
        properties.setdefault(name.partition(".")[0], {} if "." in name else _or_reference(one))
    return _section(properties, target.required)


def _or_reference(schema: Schema) -> Schema:
    return {"anyOf": [_REFERENCE, schema]} if schema else {}
