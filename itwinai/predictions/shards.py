"""Shards: what one worker has predicted, whole or absent, in a folder beside the file that they are joined into.

A shard is an Arrow file with the rows of whole batches, in ascending order of their key. The key of a row is the index
of its sample in the dataset. Where a dataset has no indices, it is made of the number of the batch, as one process
would count them, and the row in it.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from itwinai.drawn import Order
from itwinai.errors import ConfigurationError
from itwinai.io.atomic import part_name, remove_parts, write_whole
from itwinai.io.versioned_json import document_text, reading, versioned
from itwinai.predictions.columns import Column, arrow_array

KEY = "index"
"""Column of the key in a shard, and of the sample's index in the joined file."""

ROW_BITS = 32
"""The key of a row in a batch without indices: the batch's number times two to the power of this, plus the row."""

SHARD_BYTES = 8 << 20
SHARD_SECONDS = 60.0
"""A worker writes a shard at this size, or at this time after the last one: a killed run loses no more."""

CHUNK_BYTES = 1 << 20
"""Size of the record batches in a shard, which is what joining reads at a time."""

VERSION = 1


@dataclass(frozen=True)
class Task:
    """What is predicted: an interrupted prediction is resumed by one with the same task only.

    Attributes:
        loaders: number of samples of each loader's dataset; None where it has no length.
        limits: number of batches that one process would predict of each loader; None for all.
        columns: names of the columns that travel along.
        weights: a hash of the module's weights; None where no worker has all of them.
        module: name of the module's class.
    """

    loaders: tuple[int | None, ...]
    limits: tuple[int | None, ...]
    columns: tuple[str, ...]
    weights: str | None
    module: str

    def differs_from(self, other: Task) -> str | None:
        """Return the difference from another task; None if they are equal."""
        ways = {
            "loaders": "the data has other numbers of samples",
            "columns": "other columns travel along",
            "weights": "the module has other weights",
            "module": "it is another module",
        }
        values = {name: (getattr(self, name), getattr(other, name)) for name in ways}
        if None in values["weights"]:  # one of the two does not know
            del values["weights"]
        return next((ways[name] for name, (own, its) in values.items() if own != its), None)


@dataclass(frozen=True)
class Shard:
    """A shard on disk.

    Attributes:
        path: of its file.
        loader: index of the loader.
        order: what its keys count.
        world_size: number of workers of the run that wrote it.
        rows: number of rows; at most, where shards have been merged.
        first: the smallest key.
        last: the largest key.
    """

    path: Path
    loader: int
    order: Order
    world_size: int
    rows: int
    first: int
    last: int

    def keys(self) -> np.ndarray[Any, Any]:
        """Read the keys, ascending."""
        options = pa.ipc.IpcReadOptions(included_fields=[0])
        with pa.OSFile(str(self.path)) as file:
            return pa.ipc.open_file(file, options=options).read_all()[KEY].to_numpy()

    def chunks(self) -> Iterator[pa.RecordBatch]:
        """Read the rows, a chunk at a time."""
        with pa.OSFile(str(self.path)) as file:
            reader = pa.ipc.open_file(file)
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)

    def schema(self) -> pa.Schema:
        """Read the names and types of the columns."""
        with pa.OSFile(str(self.path)) as file:
            return pa.ipc.open_file(file).schema.remove_metadata()


class ShardFolder:
    """The folder that the workers write their shards to, until all is predicted and joined.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def task(self) -> Task | None:
        """Return the task of an interrupted prediction; None if there is none.

        Raises:
            ConfigurationError: another version of itwinai has left it.
        """
        try:
            text = (self.path / "task.json").read_text()
        except FileNotFoundError:
            return None
        with reading(f"{self.path}/task.json does not describe a prediction", "Delete the folder."):
            document = versioned(text, VERSION, f"{self.path}/task.json", "Resume it with that version, or delete it.")
            values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in document.items()}
            return Task(**values)

    def begin(self, task: Task) -> None:
        """Write down what is to be predicted."""
        write_whole(self.path / "task.json", document_text({"version": VERSION, **vars(task)}))

    def clean(self) -> None:
        """Remove what killed workers have left half written."""
        remove_parts(self.path)

    def remove(self) -> None:
        """Remove the folder, as a whole: what a killed process has left of it is not resumed."""
        if self.path.exists():
            beside = self.path.with_name(part_name(self.path.name))
            os.replace(self.path, beside)
            shutil.rmtree(beside)

    def shards(self) -> list[Shard]:
        """Return the whole shards. One that a power cut has damaged counts as absent, and is removed."""
        found = []
        for path in sorted(self.path.glob("*.arrow")):
            try:
                found.append(_described(path))
            except (pa.ArrowInvalid, OSError, KeyError):
                path.unlink(missing_ok=True)
        return found

    def write(self, table: pa.Table, loader: int, order: Order, rank: int, world_size: int) -> None:
        """Write a shard, whole or not at all, and flush it to the disk.

        Args:
            table: its rows, with the column of keys first.
            loader: index of the loader.
            order: what its keys count.
            rank: of the worker.
            world_size: number of workers.
        """
        table = ascending(table)
        keys = table[KEY].to_numpy()
        shard = Shard(self.path, loader, order, world_size, len(keys), int(keys[0]), int(keys[-1]))
        self.write_rows([table], table.schema, shard, rank)

    def write_rows(self, tables: Iterable[pa.Table], schema: pa.Schema, about: Shard, rank: int = 0) -> None:
        """Write a shard, whole or not at all.

        Args:
            tables: its rows, keys ascending.
            schema: of the rows.
            about: what is said of the shard, but for its path.
            rank: of the worker.
        """
        names = ("loader", "order", "world_size", "rows", "first", "last")
        schema = schema.with_metadata({name: str(getattr(about, name)) for name in names})
        name = f"{about.loader}-{rank}-{uuid.uuid4().hex[:12]}.arrow"
        beside = self.path / part_name(name)
        try:
            with open(beside, "wb") as file:
                with pa.ipc.new_file(file, schema) as writer:
                    for table in tables:
                        rows = max(1, CHUNK_BYTES * len(table) // max(1, table.nbytes))
                        writer.write_table(table.replace_schema_metadata(schema.metadata), max_chunksize=rows)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self.path / name)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


@dataclass
class ShardBuffer:
    """Collects the batches of one loader on one worker, and writes a shard when there is enough.

    Attributes:
        folder: where shards go.
        loader: index of the loader.
        order: what the keys count.
        rank: of this worker.
        world_size: number of workers.
        rows: number of rows since the loader began.
    """

    folder: ShardFolder
    loader: int
    order: Order
    rank: int
    world_size: int
    rows: int = 0
    _batches: list[dict[str, Column]] = field(default_factory=list)
    _bytes: int = 0
    _written_at: float = field(default_factory=time.monotonic)

    def add(self, keys: np.ndarray[Any, Any], columns: dict[str, Column]) -> None:
        """Add the rows of a batch.

        Args:
            keys: of the rows.
            columns: of the rows, each as long as the keys.
        """
        if KEY in columns:
            raise ConfigurationError(
                f"A column of the predictions is called '{KEY}', which is that of the sample's index. Rename it."
            )
        self._batches.append({KEY: keys, **columns})
        self.rows += len(keys)
        self._bytes += sum(column.nbytes for column in columns.values()) + keys.nbytes
        if self._bytes >= SHARD_BYTES or time.monotonic() - self._written_at > SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what there is as a shard."""
        if self._batches:
            self.folder.write(_table(self._batches), self.loader, self.order, self.rank, self.world_size)
        self._batches, self._bytes, self._written_at = [], 0, time.monotonic()


def _table(batches: Sequence[dict[str, Column]]) -> pa.Table:
    """Join the columns of batches.

    Raises:
        ConfigurationError: not all batches have the same columns, of the same shape.
    """
    names = list(batches[0])
    arrays = []
    for batch in batches:
        if list(batch) != names:
            raise ConfigurationError(
                f"predict_step returns the columns {', '.join(names[1:])} for one batch, and for another "
                f"{', '.join(list(batch)[1:])}. Return the same ones for each batch."
            )
    for name in names:
        parts = [batch[name] for batch in batches]
        if all(isinstance(part, np.ndarray) for part in parts):
            shapes = {part.shape[1:] for part in parts}
            if len(shapes) > 1:
                raise ConfigurationError(
                    f"predict_step returns rows of the shapes {' and '.join(map(str, sorted(shapes)))} for '{name}'. "
                    "Return a list with a tensor for each sample where lengths differ."
                )
            arrays.append(arrow_array(np.concatenate(parts)))
        else:
            arrays.append(_joined([arrow_array(part) for part in parts], name))
    return pa.table(dict(zip(names, arrays, strict=True)))


def _joined(arrays: list[pa.Array], name: str) -> pa.Array:
    """Join arrays whose types may differ where a batch had nothing to tell them by, as empty lists do."""
    kinds = {array.type for array in arrays}
    if len(kinds) > 1:
        schema = common_schema([pa.schema([(name, kind)]) for kind in kinds])
        arrays = [array.cast(schema.field(name).type) for array in arrays]
    return pa.concat_arrays(arrays)


def ascending(table: pa.Table) -> pa.Table:
    """Return a table in the order of its keys; a key that is there twice, as of a sample drawn twice, is kept once."""
    keys = table[KEY].to_numpy()
    if len(keys) < 2 or (keys[1:] > keys[:-1]).all():
        return table
    return table.take(pa.array(np.unique(keys, return_index=True)[1]))


def fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with all columns of a schema; missing ones are null."""
    if table.schema == schema:
        return table
    columns = [
        table[one.name].cast(one.type) if one.name in table.column_names else pa.nulls(len(table), one.type)
        for one in schema
    ]
    return pa.table(columns, schema=schema)


def common_schema(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Return a schema that holds the columns of all.

    Raises:
        ConfigurationError: a column is of types that no type can hold.
    """
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        raise ConfigurationError(
            f"predict_step returns a column of one type in one batch and of another in others: {error}. Return "
            "the same type for each batch; where lengths differ, a list with a tensor for each sample."
        ) from error


def _described(path: Path) -> Shard:
    with pa.OSFile(str(path)) as file:
        about = {key.decode(): value.decode() for key, value in (pa.ipc.open_file(file).schema.metadata or {}).items()}
    order: Any = about["order"]
    numbers = [int(about[name]) for name in ("world_size", "rows", "first", "last")]
    return Shard(path, int(about["loader"]), order, *numbers)
