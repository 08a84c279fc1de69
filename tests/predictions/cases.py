"""Predictions that are drawn: of what data, how it is loaded, what is returned; and the rows that have to be there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from itwinai.callbacks import PredictionWriter
from tests.support.cases import make_trainer

INDEXED = ("plain", "shuffled", "batch sampler", "no batch size", "reversed")
STREAMS = ("stream", "divided stream", "list of batches")


@dataclass(frozen=True)
class Case:
    """One prediction.

    Attributes:
        lengths: number of samples of each loader.
        batch_size: of the loaders.
        loader_workers: processes of each loader.
        drop_last: whether the loaders drop a smaller last batch; predictions do not.
        source: how the samples come.
        returns: what ``predict_step`` returns.
        ending: of the file.
        limit: ``limit_predict_batches``.
        split: ``split_batches``.
    """

    lengths: tuple[int, ...]
    batch_size: int
    loader_workers: int
    drop_last: bool
    source: str
    returns: str
    ending: str
    limit: int | None
    split: bool


@st.composite
def cases(draw: st.DrawFn, sources: tuple[str, ...] = (*INDEXED, *STREAMS)) -> Case:
    """Draw a prediction that is possible."""
    source = draw(st.sampled_from(sources))
    ending = draw(st.sampled_from((".parquet", ".parquet", ".zarr", ".pt", ".safetensors")))
    returns = {
        ".parquet": ("tensor", "matrix", "nested", "lists", "detections", "texts"),
        ".zarr": ("tensor", "matrix", "nested", "texts"),
    }.get(ending, ("tensor", "matrix", "nested", "lists"))
    plain = source in ("plain", "shuffled")
    return Case(
        # torch has no random order of nothing.
        lengths=tuple(draw(st.lists(st.integers(source == "shuffled", 50), min_size=1, max_size=3))),
        batch_size=draw(st.sampled_from((1, 2, 3, 6, 12))),
        loader_workers=draw(st.sampled_from((0, 0, 0, 2))) if source != "list of batches" else 0,
        drop_last=draw(st.booleans()) and plain,
        source=source,
        returns=draw(st.sampled_from(returns)),
        ending=ending,
        limit=draw(st.sampled_from((None, None, 2))) if plain else None,
        split=draw(st.booleans()) and plain,
    )


def draw_cases(number: int, sources: tuple[str, ...] = (*INDEXED, *STREAMS)) -> list[Case]:
    """Draw predictions for workers that go through them side by side; the same ones each time."""
    drawn: list[Case] = []

    @settings(max_examples=number, derandomize=True, database=None, phases=[Phase.generate], deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=cases(sources))
    def collect(case: Case) -> None:
        drawn.append(case)

    collect()
    return drawn


# ------------------------------------------------------------------------------------------------------- the data


class Numbers(Dataset):
    """Sample i is the number ``1000 * loader + i``."""

    def __init__(self, length: int, loader: int) -> None:
        self.length = length
        self.first = 1000 * loader

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        assert 0 <= index < self.length
        return torch.tensor(float(self.first + index)), index

    @property
    def coordinates(self) -> dict[str, Any]:
        return {"time": np.datetime64("2026-01-01", "ns") + np.arange(self.length) * np.timedelta64(1, "h")}


class Batches(Dataset):
    """Item i is a batch by itself, of the numbers from 3 * i on."""

    def __init__(self, length: int, loader: int) -> None:
        self.numbers = Numbers(length, loader)

    def __len__(self) -> int:
        return -(-len(self.numbers) // 3)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        indices = torch.arange(3 * index, min(3 * index + 3, len(self.numbers)))
        return self.numbers.first + indices.float(), indices


class Uneven(Sampler[list[int]]):
    """Batches of growing size, from the last sample to the first."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __iter__(self) -> Iterator[list[int]]:
        indices = list(range(self.length - 1, -1, -1))
        size = 1
        while indices:
            yield indices[:size]
            indices, size = indices[size:], size + 1


class Stream(IterableDataset):
    """The numbers one after the other; or every W-th of them, on each rank from another one on."""

    def __init__(self, length: int, loader: int, rank: int, workers: int) -> None:
        self.numbers = range(1000 * loader, 1000 * loader + length)[rank::workers]
        self.first = 1000 * loader

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        info = torch.utils.data.get_worker_info()
        part = self.numbers if info is None else self.numbers[info.id :: info.num_workers]
        return ((torch.tensor(float(number)), number - self.first) for number in part)


class Listed:
    """A loader that is not a DataLoader."""

    def __init__(self, loader: DataLoader) -> None:
        self.batches = list(loader)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def make_loaders(case: Case, rank: int, workers: int) -> list[Any]:
    """Return the loaders of a case."""
    made: list[Any] = []
    for number, length in enumerate(case.lengths):
        data: Any = Numbers(length, number)
        options: dict[str, Any] = {"num_workers": case.loader_workers}
        if case.source == "batch sampler":
            made.append(DataLoader(data, batch_sampler=Uneven(length), **options))
        elif case.source == "no batch size":
            made.append(DataLoader(Batches(length, number), batch_size=None, **options))
        elif case.source in ("stream", "divided stream"):
            part = (rank, workers) if case.source == "divided stream" else (0, 1)
            made.append(DataLoader(Stream(length, number, *part), case.batch_size, **options))
        elif case.source == "list of batches":
            made.append(Listed(DataLoader(data, case.batch_size)))
        else:
            sampler = range(length - 1, -1, -1) if case.source == "reversed" else None
            options |= {"shuffle": case.source == "shuffled", "drop_last": case.drop_last, "sampler": sampler}
            made.append(DataLoader(data, case.batch_size, **options))
    return made


# ------------------------------------------------------------------------------------------------- the prediction


class Predicting(LightningModule):
    """Returns what follows exactly from the numbers, however they are put into batches; its weights do not matter."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.net = nn.Linear(1, 1)

    def predict_dataloader(self) -> Any:
        loaders = make_loaders(self.case, self.trainer.global_rank, self.trainer.world_size)
        return loaders if len(loaders) > 1 else loaders[0]

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Any:
        x = batch[0] + 0 * self.net(batch[0][:, None])[:, 0]
        matrix = torch.stack([x, x + 0.5, -x], 1)
        if self.case.returns == "tensor":
            return x
        if self.case.returns == "matrix":
            return matrix[:, None]
        if self.case.returns == "nested":
            return {"a": x.to(torch.bfloat16) * 0, "b": {"c": matrix, "d": (x.long(), x > 20)}}
        if self.case.returns == "lists":
            return [one.repeat(int(one) % 4) for one in x]
        if self.case.returns == "detections":
            return [{"boxes": torch.ones(int(one) % 3, 4) * one, "label": int(one)} for one in x]
        return {"text": [f"number {int(one)}" for one in x], "x": x}


def expected_rows(case: Case, workers: int) -> list[list[int]]:
    """Return the numbers that have to be in the file for each loader, in the order in which they have to be there."""
    rows = []
    for length in case.lengths:
        number = length
        if case.limit is not None and case.source == "plain":
            number = min(length, case.limit * case.batch_size * (1 if case.split else workers))
        rows.append(list(range(number)))
    return rows


def predict(case: Case, strategy: Any, devices: Any, folder: Path) -> Path:
    """Predict to a file in a folder, which is new."""
    output = folder / f"predictions{case.ending}"
    trainer = make_trainer(
        strategy,
        devices,
        callbacks=[PredictionWriter(output, columns={"id": 1})],
        limit_predict_batches=case.limit,
        split_batches=case.split,
    )
    assert trainer.predict(Predicting(case)) is None
    return output


def check(case: Case, workers: int, output: Path) -> None:
    """Compare a file with what has to be in it."""
    assert sorted(path.name for path in output.parent.iterdir()) == [output.name, f"{output.name}.json"]
    in_file = [read(output, loader, len(case.lengths)) for loader in range(len(case.lengths))]
    for loader, (columns, samples) in enumerate(zip(in_file, expected_rows(case, workers), strict=True)):
        count = len(columns["index"])
        if case.limit is not None and case.source == "shuffled":  # which ones is left to chance
            samples = columns["index"].tolist()
            assert len(set(samples)) == count and samples == sorted(samples)
            assert count == min(case.lengths[loader], case.limit * case.batch_size * (1 if case.split else workers))
        assert columns["index"].tolist() == list(range(count)) or case.limit
        if not count:
            assert not samples
            continue
        own = columns["id"].tolist()
        if case.source == "divided stream" or (case.source in STREAMS and case.loader_workers):  # in turn, by batches
            assert sorted(own) == samples
            samples = own
        assert own == samples
        check_values(case, columns, [float(1000 * loader + sample) for sample in samples])


def check_values(case: Case, columns: dict[str, Any], x: list[float]) -> None:
    """Compare the columns of a loader with what follows from the numbers."""
    matrix = np.stack([x, np.array(x) + 0.5, -np.array(x)], 1)
    if case.returns == "tensor":
        assert columns["prediction"].tolist() == x
    elif case.returns == "matrix":
        assert (np.stack([np.stack(one) for one in columns["prediction"]])[:, 0] == matrix).all()
    elif case.returns == "nested":
        assert set(columns) >= {"a", "b.c", "b.d.0", "b.d.1"}
        assert columns["b.d.0"].tolist() == x and columns["b.d.1"].tolist() == [one > 20 for one in x]
        assert (np.stack([np.asarray(one) for one in columns["b.c"]]) == matrix).all()
    elif case.returns == "lists":
        assert [list(one) for one in columns["prediction"]] == [[one] * (int(one) % 4) for one in x]
    elif case.returns == "detections":
        assert columns["label"].tolist() == x
        assert [[list(row) for row in one] for one in columns["boxes"]] == [[[one] * 4] * (int(one) % 3) for one in x]
    else:
        assert [str(one) for one in columns["text"]] == [f"number {int(one)}" for one in x]


def read(output: Path, loader: int, loaders: int) -> dict[str, Any]:
    """Return the columns of a loader, as arrays."""
    if output.suffix == ".parquet":
        frame = pd.read_parquet(output)
        if loaders > 1:
            frame = frame[frame["loader"] == loader]
        return {name: frame[name].to_numpy() for name in frame}
    if output.suffix == ".zarr":
        store = xarray.open_zarr(output, group=str(loader) if loaders > 1 else None)
        hours = (
            (store["time"].to_numpy() - np.datetime64("2026-01-01", "ns")) / np.timedelta64(1, "h")
            if "time" in store.coords
            else None
        )
        assert hours is None or hours.tolist() == store["index"].to_numpy().tolist()
        return {str(name): store[name].to_numpy() for name in store}
    tensors = torch.load(output) if output.suffix == ".pt" else load_file(output)
    own = (tensors["loader"] == loader) if loaders > 1 and len(tensors.get("loader", ())) else slice(None)
    columns: dict[str, Any] = {}
    for name, value in tensors.items():
        if name.endswith(".offsets"):
            stem = name.removesuffix(".offsets")
            values = tensors[f"{stem}.values"].numpy()
            rows = [values[start:end] for start, end in itertools.pairwise(value.tolist())]
            chosen = np.arange(len(rows))[own.numpy() if isinstance(own, Tensor) else own]
            columns[stem] = [rows[place] for place in chosen]
        elif not name.endswith(".values"):
            columns[name] = value[own].numpy()
    return columns
