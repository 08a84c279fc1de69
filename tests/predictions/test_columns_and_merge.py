"""Columns of what is returned, shards on disk, and their merge."""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itwinai.errors import ConfigurationError
from itwinai.predictions import merge, shards
from itwinai.predictions.columns import arrow_array, columns_of, numpy_array, picked, rows_in
from itwinai.predictions.merge import compact, merged, numbers_of
from itwinai.predictions.shards import ROW_BITS, ShardBuffer, ShardFolder

Pair = namedtuple("Pair", "mean spread")


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    names: list[str]


def plain(columns: dict[str, Any]) -> dict[str, Any]:
    return {name: arrow_array(column).to_pylist() for name, column in columns.items()}


ROWS = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
AS_LISTS = ROWS.tolist()


@pytest.mark.parametrize(
    ("returned", "columns"),
    [
        (ROWS, {"prediction": AS_LISTS}),
        (ROWS.numpy(), {"prediction": AS_LISTS}),
        (ROWS[:, 0], {"prediction": [1, 3, 5]}),
        (ROWS[:, :, None], {"prediction": [[[one] for one in row] for row in AS_LISTS]}),
        (ROWS[:, :0], {"prediction": [[], [], []]}),
        (ROWS.to(torch.bfloat16), {"prediction": AS_LISTS}),
        (ROWS.to_sparse(), {"prediction": AS_LISTS}),
        (torch.complex(ROWS[:, 0], ROWS[:, 1]), {"prediction": AS_LISTS}),
        (ROWS[:, 0] > 2, {"prediction": [False, True, True]}),
        ({"a": ROWS, "b": {"c": ROWS[:, 0]}}, {"a": AS_LISTS, "b.c": [1, 3, 5]}),
        ((ROWS, ROWS[:, 1]), {"prediction.0": AS_LISTS, "prediction.1": [2, 4, 6]}),
        ([ROWS, ROWS], {"prediction.0": AS_LISTS, "prediction.1": AS_LISTS}),
        ({"x": (ROWS[:, 0], {"y": ROWS[:, 1]})}, {"x.0": [1, 3, 5], "x.1.y": [2, 4, 6]}),
        (Pair(ROWS[:, 0], ROWS[:, 1]), {"mean": [1, 3, 5], "spread": [2, 4, 6]}),
        (Output(ROWS, ["a", "b", "c"]), {"logits": AS_LISTS, "names": ["a", "b", "c"]}),
        (["a", "b", "c"], {"prediction": ["a", "b", "c"]}),
        (("a", "b", "c"), {"prediction": ["a", "b", "c"]}),
        ([torch.tensor(1), torch.tensor(2), torch.tensor(3)], {"prediction": [1, 2, 3]}),
        ([ROWS[0, :1], ROWS[1, :0], ROWS[2]], {"prediction": [[1], [], [5, 6]]}),
        ([ROWS[:1], ROWS[:0], ROWS[1:]], {"prediction": [[[1, 2]], [], [[3, 4], [5, 6]]]}),
        ([{"k": one, "n": torch.ones(one)} for one in range(3)], {"k": [0, 1, 2], "n": [[], [1], [1, 1]]}),
    ],
)
def test_columns(returned: Any, columns: dict[str, Any]) -> None:
    assert plain(columns_of(returned, 3)) == columns
    assert rows_in(returned) == 3 or isinstance(returned, list)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (ROWS.mean(), r"'prediction' shape \(\) for a batch of 3 samples"),
        ({"y": ROWS, "loss": ROWS.sum()}, "'loss' shape"),
        ({"loss": 1.0}, "'loss' the value 1.0"),
        (ROWS[:2], r"shape \(2, 2\) for a batch of 3 samples"),
        ([ROWS[0]] * 2, "2 elements for a batch of 3 samples"),
        (None, "the value None"),
        ([{"a": 1}, {"a": 1}, {"b": 1}], "not all have the same keys"),
        ([object()] * 3, "a list of object, of which no column can be made"),
    ],
)
def test_what_has_no_row_for_each_sample_is_an_error(returned: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        columns_of(returned, 3)


def test_columns_are_copies() -> None:
    buffer = torch.zeros(2)
    columns = columns_of(buffer, 2)
    buffer += 1
    assert plain(columns) == {"prediction": [0, 0]}


def test_parts_of_batches() -> None:
    batch = {"id": ["a", "b"], "x": torch.ones(2, 2)}
    assert plain(picked(batch, {"id": "id"}, 2)) == {"id": ["a", "b"]}
    assert plain(picked((batch["x"], torch.arange(2)), {"target": 1}, 2)) == {"target": [0, 1]}
    assert plain(picked(Output(ROWS, ["a", "b", "c"]), {"n": "names"}, 3)) == {"n": ["a", "b", "c"]}
    with pytest.raises(ConfigurationError, match=r"requests 'idd'.*Did you mean 'id'.*'id', 'x'"):
        picked(batch, {"idd": "idd"}, 2)
    with pytest.raises(ConfigurationError, match=r"a tuple of 1: name a position, as in columns=\{'target': 1\}"):
        picked((batch["x"],), {"id": "id"}, 2)


@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_arrays_come_back_from_arrow(shape: list[int]) -> None:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    assert (numpy_array(arrow_array(array)) == array).all()


# ------------------------------------------------------------------------------------------------------- shards


def write(folder: ShardFolder, keys: list[int], order: Any = "sample") -> None:
    """Write a shard whose values tell the keys."""
    array = np.array(keys, np.int64)
    folder.write(pa.table({"index": array, "value": array * 10}), 0, order, rank=0, world_size=2)


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.lists(st.integers(0, 60), min_size=1), min_size=1, max_size=8), chunk=st.integers(1, 500))
def test_merge(parts: list[list[int]], chunk: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Shards of any order, that overlap and repeat, become one order with each key once."""
    folder = ShardFolder(tmp_path_factory.mktemp("shards"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "CHUNK_BYTES", chunk)
        for part in parts:
            write(folder, part)
        tables = list(merged(folder.shards()))
    found = pa.concat_tables(tables)
    expected = sorted(set().union(*parts))
    assert found["index"].to_pylist() == expected
    assert found["value"].to_pylist() == [10 * key for key in expected]


def test_many_shards_are_merged_in_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "FAN_IN", 3)
    folder = ShardFolder(tmp_path)
    for part in range(20):
        write(folder, list(range(part, 200, 20)))
    compacted = compact(folder, folder.shards())
    assert len(compacted) <= 3
    (table,) = [pa.concat_tables(merged(compacted))]
    assert table["index"].to_pylist() == list(range(200))
    assert [shard.path for shard in folder.shards()] == sorted(shard.path for shard in compacted)


def test_keys_of_batches_become_places(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path)
    write(folder, [(4 << ROW_BITS) + row for row in range(2)], "batch")
    write(folder, [(1 << ROW_BITS) + row for row in range(3)], "batch")
    table = pa.concat_tables(merged(folder.shards()))
    assert table["index"].to_pylist() == list(range(5))
    assert [value // 10 >> ROW_BITS for value in table["value"].to_pylist()] == [1, 1, 1, 4, 4]
    keys = np.concatenate([shard.keys() for shard in folder.shards()])
    assert numbers_of(keys, "batch").tolist() == [1, 4]


def test_damaged_shard_counts_as_absent(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path)
    write(folder, [1, 2])
    write(folder, [3])
    damaged, _ = sorted(tmp_path.glob("*.arrow"))
    damaged.write_bytes(damaged.read_bytes()[:-20])
    assert len(folder.shards()) == 1 and not damaged.exists()


def buffer(tmp_path: Path) -> ShardBuffer:
    return ShardBuffer(ShardFolder(tmp_path), 0, "sample", rank=0, world_size=1)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"a": ROWS.numpy()}, {"a": ROWS.numpy()[:, :1]}, r"shapes \(1,\) and \(2,\) for 'a'.*a list with a tensor"),
        ({"a": ROWS.numpy()}, {"b": ROWS.numpy()}, "the columns a for one batch, and for another b"),
        ({"a": pa.array(["x"] * 3)}, {"a": np.ones(3)}, "of one type in one batch and of another in others"),
    ],
)
def test_batches_that_do_not_fit_together(tmp_path: Path, first: Any, second: Any, message: str) -> None:
    one = buffer(tmp_path)
    one.add(np.arange(3), first)
    one.add(np.arange(3, 6), second)
    with pytest.raises(ConfigurationError, match=message):
        one.flush()


def test_types_of_empty_lists_follow_from_others(tmp_path: Path) -> None:
    one = buffer(tmp_path)
    one.add(np.arange(2), {"a": pa.array([[], []])})
    one.add(np.arange(2, 4), {"a": pa.array([[1.5], []])})
    one.flush()
    (shard,) = one.folder.shards()
    assert pa.Table.from_batches(shard.chunks())["a"].to_pylist() == [[], [], [1.5], []]


def test_column_of_the_index_is_taken(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="called 'index'.*Rename it"):
        buffer(tmp_path).add(np.arange(3), {"index": ROWS.numpy()})
