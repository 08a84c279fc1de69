"""The files that predictions are joined into: Parquet, Zarr, and tensors by name (``.pt``, ``.safetensors``)."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from itwinai.errors import ConfigurationError, MissingPackageError, did_you_mean
from itwinai.predictions.columns import numpy_array
from itwinai.predictions.shards import KEY, common_schema, fitted

LOADER = "loader"
"""Column with the index of the loader, where there are several."""

_ROW_GROUP_BYTES = 8 << 20
_ZARR_CHUNK_BYTES = 4 << 20


class PredictionFile(ABC):
    """A file that tables are added to, one loader after the other.

    Args:
        path: of the file, in an empty folder.
        schemas: of the tables of each loader.
        rows: number of rows of each loader, or more.
        coordinates: arrays that go with the samples, by name, for each loader.
    """

    holds_texts = True

    def __init__(
        self,
        path: Path,
        schemas: list[pa.Schema],
        rows: list[int],
        coordinates: Sequence[Mapping[str, np.ndarray[Any, Any]]],
    ) -> None:
        self.path = path
        self.schemas = schemas
        self.rows = rows
        self.coordinates = coordinates

    @abstractmethod
    def add(self, loader: int, table: pa.Table) -> None:
        """Add the next rows of a loader."""

    @abstractmethod
    def finish(self) -> None:
        """Write what is left, and close the file."""


class ParquetFile(PredictionFile):
    """One table; of several loaders, with a column that tells which, and nulls where a loader has not a column."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        schema = common_schema(self.schemas)
        self._several = len(self.schemas) > 1
        self._schema = pa.schema([(LOADER, pa.int32()), *schema]) if self._several else schema
        self._writer = pq.ParquetWriter(self.path, self._schema)
        self._waiting: list[pa.Table] = []
        self._bytes = 0

    def add(self, loader: int, table: pa.Table) -> None:
        """Add rows, which are kept until there are enough for a row group."""
        if self._several:
            table = table.append_column(LOADER, pa.array(np.full(len(table), loader, np.int32)))
        self._waiting.append(fitted(table, self._schema))
        self._bytes += table.nbytes
        if self._bytes > _ROW_GROUP_BYTES:
            self._write()

    def _write(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting))
        self._waiting, self._bytes = [], 0

    def finish(self) -> None:
        """Write the last row group and the footer."""
        self._write()
        self._writer.close()


class ZarrFile(PredictionFile):
    """An array for each column; of several loaders, a group for each with its index as the name."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        try:
            import zarr
        except ImportError as error:
            raise MissingPackageError("Predictions as Zarr need the package zarr: pip install zarr") from error
        root = zarr.open_group(self.path, mode="w")
        several = len(self.schemas) > 1
        self._groups = [root.create_group(str(index)) if several else root for index in range(len(self.schemas))]
        self._root = root
        self._filled = [0] * len(self.schemas)
        for group, schema, rows, coordinates in zip(
            self._groups, self.schemas, self.rows, self.coordinates, strict=True
        ):
            for one in schema:
                self._create(group, one.name, _numpy_type(one), rows)
            for name, values in coordinates.items():
                self._create(group, name, (values.dtype, values.shape[1:]), rows)
            if coordinates:  # where readers that know CF conventions look for them
                group.attrs["coordinates"] = " ".join(coordinates)

    @staticmethod
    def _create(group: Any, name: str, kind: tuple[Any, tuple[int, ...]], rows: int) -> None:
        dtype, shape = kind
        size = (16 if dtype is str else np.dtype(dtype).itemsize) * max(1, int(np.prod(shape)))
        group.create_array(
            name,
            shape=(rows, *shape),
            chunks=(max(1, min(rows, _ZARR_CHUNK_BYTES // size)), *(max(1, length) for length in shape)),
            dtype=dtype,
            dimension_names=("sample", *(f"{name}_{place}" for place in range(1, len(shape) + 1))),
        )

    def add(self, loader: int, table: pa.Table) -> None:
        """Write rows to the arrays."""
        group: Any = self._groups[loader]
        start = self._filled[loader]
        end = self._filled[loader] = start + len(table)
        for name in table.column_names:
            column = table[name]
            plain = pa.types.is_string(column.type)
            group[name][start:end] = np.array(column.to_pylist(), object) if plain else numpy_array(column)
        samples = table[KEY].to_numpy()
        for name, values in self.coordinates[loader].items():
            group[name][start:end] = values[samples]

    def finish(self) -> None:
        """Cut the arrays to their lengths."""
        import zarr

        for group, rows, expected in zip(self._groups, self._filled, self.rows, strict=True):
            for array in group.array_values() if rows != expected else ():
                array.resize((rows, *array.shape[1:]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that other implementations may not read it: they read the rest
            zarr.consolidate_metadata(self._root.store)


class TensorFile(PredictionFile):
    """A tensor for each column, in a dictionary as `torch.save` or safetensors write it.

    A column of lists whose lengths differ becomes two tensors: ``name.values``, and ``name.offsets`` with the place
    where each row begins, and the end.
    """

    holds_texts = False
    save: Callable[[dict[str, torch.Tensor], Path], None]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._folder = self.path.with_name("columns")
        self._folder.mkdir()
        self._columns: dict[str, tuple[Any, tuple[int, ...]]] = {}
        self._rows: dict[str, int] = {}

    def add(self, loader: int, table: pa.Table) -> None:
        """Append rows to a file for each column."""
        if len(self.schemas) > 1:
            self._append(LOADER, np.full(len(table), loader, np.int64))
        for name in table.column_names:
            array = table[name].combine_chunks()
            if pa.types.is_list(array.type):
                offsets = array.offsets.to_numpy().astype(np.int64)
                begin = self._rows.get(f"{name}.values", 0)
                if f"{name}.offsets" not in self._columns:
                    self._append(f"{name}.offsets", np.zeros(1, np.int64))
                self._append(f"{name}.offsets", offsets[1:] - offsets[0] + begin)
                self._append(f"{name}.values", self._numbers(name, array.flatten()))
            else:
                self._append(name, self._numbers(name, array))

    def _numbers(self, name: str, array: pa.Array) -> np.ndarray[Any, Any]:
        try:
            return numpy_array(array)
        except TypeError as error:
            raise ConfigurationError(
                f"'{name}' has {error}, and files of tensors hold numbers. Write Parquet, which holds texts and lists."
            ) from None

    def _append(self, name: str, values: np.ndarray[Any, Any]) -> None:
        kind = (values.dtype, values.shape[1:])
        if self._columns.setdefault(name, kind) != kind:
            raise ConfigurationError(
                f"'{name}' has rows of shape {self._columns[name][1]} in one loader and {kind[1]} in another. Write "
                "Parquet or Zarr, which hold each loader's own."
            )
        with open(self._folder / name, "ab") as file:
            file.write(np.ascontiguousarray(values).data)
        self._rows[name] = self._rows.get(name, 0) + len(values)

    def finish(self) -> None:
        """Write the dictionary of the columns, which are mapped into memory for that."""
        tensors = {}
        if not self._columns:
            self._append(KEY, np.empty(0, np.int64))
        for name, (dtype, shape) in self._columns.items():
            whole = (self._rows[name], *shape)
            mapped = (
                np.memmap(self._folder / name, dtype, "r", shape=whole) if np.prod(whole) else np.empty(whole, dtype)
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the array cannot be written to: it is only read
                tensors[name] = torch.from_numpy(mapped)
        self.save(tensors, self.path)


class TorchFile(TensorFile):
    """What `torch.load` reads."""

    save = staticmethod(torch.save)


class SafetensorsFile(TensorFile):
    """What safetensors reads, in any language."""

    @staticmethod
    def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
        """Write the file."""
        try:
            from safetensors.torch import save_file
        except ImportError as error:
            raise MissingPackageError(
                "Predictions as safetensors need the package safetensors: pip install safetensors"
            ) from error
        save_file(tensors, path)


FORMATS: Mapping[str, type[PredictionFile]] = {
    ".parquet": ParquetFile,
    ".zarr": ZarrFile,
    ".pt": TorchFile,
    ".safetensors": SafetensorsFile,
}


def format_of(path: Path) -> type[PredictionFile]:
    """Return what writes a file of this name.

    Raises:
        ConfigurationError: its ending is that of no format.
    """
    if path.suffix not in FORMATS:
        raise ConfigurationError(
            f"Predictions cannot be written to '{path}': the ending names the format, and '{path.suffix}' is not among "
            f"{', '.join(FORMATS)}.{did_you_mean(path.suffix, FORMATS)}",
            argument="output",
        )
    return FORMATS[path.suffix]


def _numpy_type(one: pa.Field) -> tuple[Any, tuple[int, ...]]:
    """Return the dtype of a column's numbers, and the shape of its rows."""
    kind, shape = one.type, []
    while pa.types.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        kind = kind.value_type
    if pa.types.is_string(kind) and not shape:
        return str, ()
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise ConfigurationError(
            f"'{one.name}' has rows of the type {one.type}, and a Zarr array holds rows of one shape. Write Parquet, "
            "which holds lists of any length; or pad them."
        )
    return kind.to_pandas_dtype(), tuple(shape)
