"""The steps of a pipeline as a Snakefile."""

from __future__ import annotations

import os
from pathlib import Path

from itwinai.errors import ConfigurationError
from itwinai.pipelines.fingerprint import Fingerprint
from itwinai.pipelines.outputs import digest_of_values
from itwinai.pipelines.planner import Planner
from itwinai.pipelines.record import RECORD, shown
from itwinai.pipelines.steps_file import flag_of
from itwinai.slurm.quoting import bash_words


def snakefile(planner: Planner) -> str:
    """Return a Snakefile with a rule for each step.

    Snakemake decides which rules run, by its own triggers; a rule runs its step by `itwinai run`. The inputs of a rule
    are the records of the steps that it needs, the files that it reads and those of its code; its parameter is a digest
    of its config.

    Raises:
        ConfigurationError: the pipeline is not in a file.
    """
    file = planner.file
    if file.path is None:
        raise ConfigurationError("A Snakefile runs the steps of a file: make the pipeline with Pipeline.from_yaml.")
    flags = [flag_of(path, value) for path, value in file.overrides.items()]
    folder = shown(planner.folder.path)
    ends = [name for name in file.graph.needs if len(file.graph.below(name)) == 1]
    lines = [
        f"# Written by `itwinai run {file.path} --export snakemake`. Run it in the same folder: snakemake --cores 2",
        "rule all:",
        *_section("input", [_record(folder, name) for name in ends]),
    ]
    for name, needs in file.graph.needs.items():
        fingerprint = planner.fingerprint(name, file.graph.needs)
        files = [path for path in fingerprint.inputs if _is_file(path, planner, name)]
        code = [shown(path) for path in planner.code_files(name)]
        inputs = [*(_record(folder, one) for one in needs), *files, *code]
        command = bash_words(["itwinai", "run", str(file.path), name, "--folder", folder, "--jobs", "1", *flags])
        command = command.replace("{", "{{").replace("}", "}}")
        lines += [
            "",
            f"rule {name.replace('-', '_')}:",
            *(_section("input", inputs) if inputs else []),
            *_section("output", [_record(folder, name)]),
            f"    params:\n        config={_digest(fingerprint)!r}",
            *(["    threads: workflow.cores"] if file.steps[name].alone else []),
            f"    shell:\n        {command!r}",
        ]
    return "\n".join(lines) + "\n"


def _section(name: str, values: list[str]) -> list[str]:
    return [f"    {name}:", *(f"        {_escaped(value)!r}," for value in values)]


def _escaped(path: str) -> str:
    """Return a path in which Snakemake finds no wildcards."""
    return path.replace("{", "{{").replace("}", "}}")


def _record(folder: str, step: str) -> str:
    return os.path.join(folder, step, RECORD)


def _digest(fingerprint: Fingerprint) -> str:
    return digest_of_values([dict(fingerprint.config), dict(fingerprint.versions)])


def _is_file(path: str, planner: Planner, name: str) -> bool:
    labels = {reference.label for reference in planner.references(name)}
    return path not in labels and Path(path).exists()
