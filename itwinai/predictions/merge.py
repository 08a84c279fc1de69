"""The rows of many shards in one order, without loading them: a merge of sorted runs, some megabytes at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from itwinai.drawn import Order
from itwinai.predictions.shards import KEY, ROW_BITS, Shard, ShardFolder, ascending, common_schema, fitted

FAN_IN = 64
"""Most shards that are open at a time, each of which holds a chunk in memory."""


def merged(shards: Sequence[Shard]) -> Iterator[pa.Table]:
    """Yield the rows of the shards of one loader in ascending order of their keys, each key once.

    Where keys count batches, the column of keys is replaced by the index of the row.
    """
    index = 0
    for table in _ascending(shards, common_schema([shard.schema() for shard in shards])):
        if shards[0].order != "sample":
            keys = pa.array(np.arange(index, index + len(table)))
            table = table.set_column(0, KEY, keys)
        index += len(table)
        yield table


def compact(folder: ShardFolder, shards: Sequence[Shard]) -> list[Shard]:
    """Return shards of which few enough overlap to merge them at once; some are merged in the folder for that.

    Args:
        folder: of the shards.
        shards: of one loader.
    """
    shards = sorted(shards, key=lambda shard: shard.first)
    while _overlap(shards) > FAN_IN:
        for start in range(0, len(shards), FAN_IN):
            group = shards[start : start + FAN_IN]
            _merge_into_folder(folder, group)
        loader = shards[0].loader
        shards = sorted((one for one in folder.shards() if one.loader == loader), key=lambda shard: shard.first)
    return list(shards)


def numbers_of(keys: np.ndarray[Any, Any], order: Order) -> np.ndarray[Any, Any]:
    """Return what keys count, each once: samples, or batches."""
    return np.unique(keys if order == "sample" else keys >> ROW_BITS)


class _Run:
    """One shard that is read from its beginning."""

    def __init__(self, shard: Shard, schema: pa.Schema) -> None:
        self._chunks = shard.chunks()
        self._schema = schema
        self.advance()

    def advance(self) -> bool:
        """Read the next chunk if the last one is used up; return whether there is anything left."""
        while not len(getattr(self, "table", ())):
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self.table = fitted(pa.Table.from_batches([chunk.replace_schema_metadata(None)]), self._schema)
            self.keys = self.table[KEY].to_numpy()
        return True

    def take(self, bound: int) -> pa.Table:
        """Return the rows up to a key, and leave the others."""
        number = int(np.searchsorted(self.keys, bound, side="right"))
        taken, self.table, self.keys = self.table.slice(0, number), self.table.slice(number), self.keys[number:]
        return taken


def _ascending(shards: Sequence[Shard], schema: pa.Schema) -> Iterator[pa.Table]:
    waiting = sorted(shards, key=lambda shard: shard.first, reverse=True)
    open_runs: list[_Run] = []
    while waiting or open_runs:
        if not open_runs:
            open_runs.append(_Run(waiting.pop(), schema))
        # Up to here, no run has a row that is not read; shards that begin before have to be open as well.
        bound = min(int(run.keys[-1]) for run in open_runs)
        while waiting and waiting[-1].first <= bound:
            open_runs.append(_Run(waiting.pop(), schema))
            bound = min(bound, int(open_runs[-1].keys[-1]))
        yield ascending(pa.concat_tables([run.take(bound) for run in open_runs]))
        open_runs = [run for run in open_runs if run.advance()]


def _overlap(shards: Sequence[Shard]) -> int:
    """Return how many shards hold a range of keys that has a key in common, at most."""
    ends = sorted([(shard.first, 1) for shard in shards] + [(shard.last + 1, -1) for shard in shards])
    most = number = 0
    for _, step in ends:
        number += step
        most = max(most, number)
    return most


def _merge_into_folder(folder: ShardFolder, shards: Sequence[Shard]) -> None:
    """Replace shards by one; a reader at that time finds some rows twice, and skips them."""
    schema = common_schema([shard.schema() for shard in shards])
    about = replace(
        shards[0],
        rows=sum(shard.rows for shard in shards),
        first=min(shard.first for shard in shards),
        last=max(shard.last for shard in shards),
    )
    folder.write_rows(_ascending(shards, schema), schema, about)
    for shard in shards:
        shard.path.unlink()
