"""The file of predictions that is whole: written beside its place, described, moved there, and verified later."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from itwinai.errors import ConfigurationError, ItwinaiError
from itwinai.io.atomic import part_name, write_whole
from itwinai.io.versioned_json import document_text, reading, versioned
from itwinai.predictions.formats import format_of
from itwinai.predictions.merge import compact, merged
from itwinai.predictions.shards import KEY, ShardFolder, common_schema

VERSION = 1

_EMPTY = pa.schema([(KEY, pa.int64())])


class DamagedPredictionsError(ItwinaiError):
    """A file of predictions is not what was written."""


@dataclass(frozen=True)
class Manifest:
    """What is known of a file of predictions; it lies beside it, as ``<name>.json``.

    Attributes:
        samples: number of rows of each loader.
        columns: types of the columns, by name.
        bytes: size of the file, or of all files of the folder.
        sha256: of the file, or of the names and contents of all files.
        written: when, in seconds since 1970.
        about: checkpoint, module and the like; plain values.
    """

    samples: tuple[int, ...]
    columns: dict[str, str]
    bytes: int
    sha256: str
    written: float
    about: dict[str, Any]


def manifest_path(output: Path) -> Path:
    """Return where the manifest of a file of predictions lies."""
    return output.with_name(f"{output.name}.json")


def join(
    folder: ShardFolder,
    output: Path,
    loaders: int,
    coordinates: Sequence[Mapping[str, np.ndarray[Any, Any]]],
    about: Mapping[str, Any],
) -> Manifest:
    """Join shards into one file in the order of the datasets, and describe it; it appears whole or not at all.

    Args:
        folder: of the shards.
        output: of the file; one that is there is replaced.
        loaders: number of loaders.
        coordinates: arrays that go with the samples, by name, for each loader.
        about: for the manifest.

    Raises:
        ConfigurationError: the format cannot hold the columns.
        OSError: the file cannot be written; the shards stay.
    """
    everything = folder.shards()
    groups = [compact(folder, [one for one in everything if one.loader == loader]) for loader in range(loaders)]
    schemas = [common_schema([shard.schema() for shard in group]) if group else _EMPTY for group in groups]
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = output.with_name(part_name(output.name))
    beside.mkdir()
    samples = [0] * loaders
    try:
        rows = [sum(one.rows for one in group) for group in groups]
        file = format_of(output)(beside / output.name, schemas, rows, coordinates)
        for loader, group in enumerate(groups):
            for table in merged(group) if group else ():
                file.add(loader, table)
                samples[loader] += len(table)
        file.finish()
        size, digest = _digest(beside / output.name)
        columns = {one.name: str(one.type) for schema in schemas for one in schema}
        manifest = Manifest(tuple(samples), columns, size, digest, time.time(), dict(about))
        # Before the file: one that is there has a manifest.
        write_whole(manifest_path(output), document_text({"version": VERSION, **asdict(manifest)}))
        if output.is_dir():
            os.replace(output, beside / "replaced")
        os.replace(beside / output.name, output)
    finally:
        shutil.rmtree(beside)
    return manifest


def read_manifest(output: Path) -> Manifest:
    """Return the manifest of a file of predictions.

    Raises:
        ConfigurationError: there is no file, or no manifest beside it.
    """
    path = manifest_path(output)
    if not output.exists() or not path.exists():
        missing = output if not output.exists() else path
        raise ConfigurationError(f"There is no {missing}. Name a file that PredictionWriter or --output has written.")
    with reading(f"{path} does not describe predictions"):
        document = versioned(path.read_text(), VERSION, str(path))
        values: dict[str, Any] = {**document, "samples": tuple(document["samples"])}
        return Manifest(**values)


def verify(output: Path) -> Manifest:
    """Read a file of predictions and compare it with its manifest.

    Raises:
        ConfigurationError: there is no file, or no manifest beside it.
        DamagedPredictionsError: it is not what was written.
    """
    manifest = read_manifest(output)
    size, digest = _digest(output)
    if size != manifest.bytes:
        raise DamagedPredictionsError(
            f"{output} has {size:,} bytes, and {manifest.bytes:,} were written: it is cut off, or was changed. Predict "
            "again, or restore a copy."
        )
    if digest != manifest.sha256:
        raise DamagedPredictionsError(
            f"The content of {output} is not what was written: its SHA-256 is {digest[:12]}..., and was "
            f"{manifest.sha256[:12]}.... Predict again, or restore a copy."
        )
    return manifest


def _digest(path: Path) -> tuple[int, str]:
    """Return the size and the hash of a file, or of all files of a folder with their names."""
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    digest, size = hashlib.sha256(), 0
    for one in files:
        if one is not path:
            digest.update(str(one.relative_to(path)).encode() + b"\0")
        with open(one, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
    return size, digest.hexdigest()
