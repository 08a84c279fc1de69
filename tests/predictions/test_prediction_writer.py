"""What `PredictionWriter` refuses, resumes and keeps; the batch size of predictions; and lightning's own writers."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, Callback
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

from itwinai.callbacks import PredictionWriter
from itwinai.errors import ConfigurationError, MissingPackageError
from itwinai.loops import batch_size
from itwinai.predictions import shards
from itwinai.predictions.joined import DamagedPredictionsError, verify
from tests.conftest import RunCommand, python
from tests.predictions.cases import Case, Predicting
from tests.support.cases import make_trainer


class Model(LightningModule):
    """Returns its input times a weight; may fail at a sample."""

    def __init__(self, weight: float = 2.0, fails_at: float = -1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.fails_at = fails_at

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.fails_at in batch[0]:
            raise RuntimeError("the model fails here")
        return batch[0] * self.weight


class OfBatches(Model):
    """Returns one number for a batch."""

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return batch[0].sum()


def loader(samples: int = 20, batch_size: int = 3, **options: Any) -> DataLoader:
    x = torch.arange(float(samples))
    return DataLoader(TensorDataset(x, x.long()), batch_size, **options)


def predict(
    output: Path, model: LightningModule | None = None, data: Any = None, strategy: str = "auto", devices: int = 1,
    limit: int | None = None, **options: Any,
) -> PredictionWriter:  # fmt: skip
    writer = PredictionWriter(output, **options)
    trainer = make_trainer(strategy, devices, callbacks=writer, limit_predict_batches=limit, cpu_threads=1)
    trainer.predict(Model() if model is None else model, loader() if data is None else data)
    return writer


def values(output: Path) -> list[float]:
    frame = pd.read_parquet(output)
    assert frame["index"].tolist() == list(range(len(frame)))
    return frame["prediction"].tolist()


def interrupt(output: Path, monkeypatch: pytest.MonkeyPatch, at: float = 13.0, **options: Any) -> list[int]:
    """Let a prediction fail at a sample; return the samples that are on disk."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    with pytest.raises(RuntimeError, match="the model fails here"):
        predict(output, Model(fails_at=at), **options)
    folder = shards.ShardFolder(output.with_name(f"{output.name}.partial"))
    return sorted(key for shard in folder.shards() for key in shard.keys().tolist())


def test_existing_file(tmp_path: Path) -> None:
    output = tmp_path / "p.parquet"
    predict(output)
    with pytest.raises(ConfigurationError, match=r"p\.parquet exists\. Give another name"):
        predict(output, Model(3.0))
    assert values(output) == [2.0 * one for one in range(20)]
    predict(output, Model(3.0), overwrite=True)
    assert values(output) == [3.0 * one for one in range(20)]


def test_lightnings_own_trainer_is_an_error(tmp_path: Path) -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", callbacks=[PredictionWriter(tmp_path / "p.parquet")], **quiet)
    with pytest.raises(ConfigurationError, match=r"needs ItwinaiTrainer .* Replace Trainer by ItwinaiTrainer"):
        trainer.predict(BoringModel(), DataLoader(torch.ones(4, 32), 2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["p.csv", "p", "p.parqet"])
def test_unknown_ending(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"not among \.parquet, \.zarr, \.pt, \.safetensors"):
        PredictionWriter(name)


@pytest.mark.parametrize("size", [0, -1, "large", 2.5])
def test_batch_size_that_is_none(size: Any) -> None:
    with pytest.raises(ConfigurationError, match="must be a number of samples or 'auto'"):
        PredictionWriter("p.parquet", batch_size=size)


def test_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "itwinai.predictions.formats", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'itwinai\[predictions\]'"):
        PredictionWriter("p.parquet")


def test_resumed_after_an_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """What was predicted is not predicted again, with another batch size and several workers."""
    output = tmp_path / "p.parquet"
    assert interrupt(output, monkeypatch) == list(range(12))
    assert "run the same call to resume" in caplog.text
    predict(output, Model(fails_at=5.0), loader(batch_size=7), "ddp", 2)  # sample 5 is done
    assert values(output) == [2.0 * one for one in range(20)]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["p.parquet", "p.parquet.json"]


@pytest.mark.parametrize(
    ("model", "data", "columns", "reason"),
    [
        (Model(3.0), loader(), (), "the module has other weights"),
        (Model(), loader(21), (), "the data has other numbers of samples"),
        (Model(), loader(), {"id": 1}, "other columns travel along"),
        (type("Other", (Model,), {})(), loader(), (), "it is another module"),
    ],
)
def test_interrupted_prediction_of_something_else(
    model: Any, data: Any, columns: Any, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "p.parquet"
    done = interrupt(output, monkeypatch)
    with pytest.raises(ConfigurationError, match=f"interrupted prediction of something else: {reason}"):
        predict(output, model, data, columns=columns)
    assert interrupt(output, monkeypatch) == done  # nothing is lost
    predict(output, model, data, columns=columns, overwrite=True)
    assert len(values(output)) == len(data.dataset)


def test_resumed_under_a_strategy_that_does_not_know_all_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "p.parquet"
    interrupt(output, monkeypatch)
    predict(output, Model(fails_at=5.0), strategy="deepspeed_stage_3", devices=2)
    assert values(output) == [2.0 * one for one in range(20)]


def test_fast_dev_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "p.parquet"
    done = interrupt(output, monkeypatch)
    trainer = make_trainer("auto", 1, callbacks=PredictionWriter(output), fast_dev_run=True)
    trainer.predict(Model(), loader())
    assert interrupt(output, monkeypatch) == done and not output.exists()
    with pytest.raises(ConfigurationError, match="has a row for each sample"):  # what would fail later fails here
        trainer.predict(OfBatches(), loader())


@pytest.mark.parametrize("workers", [1, 2])
def test_limit_stays_that_of_the_first_call(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "p.parquet"
    assert interrupt(output, monkeypatch, at=7.0, limit=4) == list(range(6))
    predict(output, strategy="ddp", devices=workers, limit=4)
    assert len(values(output)) == 12


def test_shuffled_prediction_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "p.parquet"
    torch.manual_seed(5)
    done = interrupt(output, monkeypatch, data=loader(shuffle=True))
    assert 0 < len(done) < 20
    predict(output, data=loader(shuffle=True))
    assert values(output) == [2.0 * one for one in range(20)]


def streaming(divided: bool) -> Case:
    return Case((20,), 3, 0, False, "divided stream" if divided else "stream", "tensor", ".parquet", None, False)


class Failing(Predicting):
    """Fails at a number."""

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        if 13.0 in batch[0]:
            raise RuntimeError("the model fails here")
        return super().predict_step(batch, batch_idx, dataloader_idx)


Failing.__name__ = "Predicting"


def test_stream_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With other workers where they take batches in turn; with as many where the dataset divides itself."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    torch.manual_seed(0)
    case = streaming(divided=False)
    failing, whole = Failing(case), Predicting(case)
    whole.load_state_dict(failing.state_dict())
    output = tmp_path / "p.parquet"
    with pytest.raises(RuntimeError, match="fails here"):
        make_trainer("auto", 1, callbacks=PredictionWriter(output)).predict(failing)
    make_trainer("ddp", 2, callbacks=PredictionWriter(output)).predict(whole)
    assert values(output) == [float(one) for one in range(20)]

    case = streaming(divided=True)
    failing, whole = Failing(case), Predicting(case)
    whole.load_state_dict(failing.state_dict())
    output = tmp_path / "divided.parquet"
    with pytest.raises(RuntimeError, match="fails here"):
        make_trainer("ddp", 2, callbacks=PredictionWriter(output)).predict(failing)
    partial = shards.ShardFolder(output.with_name("divided.parquet.partial"))
    if partial.shards():  # unless both workers have failed before they wrote anything
        with pytest.raises(ConfigurationError, match="divides itself among 2 workers, and this run has 3"):
            make_trainer("ddp", 3, callbacks=PredictionWriter(output)).predict(whole)
    make_trainer("ddp", 2, callbacks=PredictionWriter(output)).predict(whole)
    assert sorted(values(output)) == [float(one) for one in range(20)]


def test_stream_under_stage_3(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="DeepSpeed in stage 3 gathers parameters in each forward"):
        make_trainer("deepspeed_stage_3", 2, callbacks=PredictionWriter(tmp_path / "p.parquet")).predict(
            Predicting(streaming(divided=False))
        )


def test_order_of_loader_processes(tmp_path: Path) -> None:
    """Loaders that give batches as they are ready would be told the wrong indices."""
    output = tmp_path / "p.parquet"
    predict(output, data=loader(num_workers=2, in_order=False))
    assert values(output) == [2.0 * one for one in range(20)]


# --------------------------------------------------------------------------------------------------- batch size


class Counting(Model):
    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.sizes.append(len(batch[0]))
        return super().predict_step(batch, batch_idx)


def test_other_batch_sizes(tmp_path: Path) -> None:
    model = Counting()
    predict(tmp_path / "a.parquet", model, batch_size=8)
    assert model.sizes == [8, 8, 4]
    predict(tmp_path / "b.parquet", model, strategy="ddp", devices=2, batch_size=8)
    assert values(tmp_path / "a.parquet") == values(tmp_path / "b.parquet") == [2.0 * one for one in range(20)]
    model = Counting()
    predict(tmp_path / "c.parquet", model, batch_size=8, limit=2)
    assert model.sizes == [8, 8]
    case = streaming(divided=False)
    make_trainer("auto", 1, callbacks=PredictionWriter(tmp_path / "d.parquet", batch_size=8)).predict(Predicting(case))
    assert values(tmp_path / "d.parquet") == [float(one) for one in range(20)]
    own = DataLoader(loader().dataset, batch_sampler=SortedBatches(range(20), 4, False))
    with pytest.raises(ConfigurationError, match="batch_size=8 cannot be set.*a batch sampler that decides"):
        predict(tmp_path / "e.parquet", data=own, batch_size=8)


class SortedBatches(BatchSampler):
    """A batch sampler of the user's own."""


class Costly(Model):
    """Is out of memory beyond a size; or fails before the prediction begins."""

    def __init__(self, limit: int = 1000, fails: bool = False) -> None:
        super().__init__()
        self.limit = limit
        self.fails = fails
        self.began = False
        self.sizes: list[int] = []

    def on_predict_start(self) -> None:
        self.began = True

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        assert not self.training
        if self.fails and not self.began:
            raise ValueError("not yet")
        if len(batch[0]) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if self.began:
            self.sizes.append(len(batch[0]))
        return super().predict_step(batch, batch_idx)


def clock(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float]) -> None:
    """Fake the clock: a batch takes so long, by the number of batches that were tried before."""
    tried = itertools.count()

    def timed(call: Callable[[], None]) -> float:
        call()
        return seconds(next(tried))

    monkeypatch.setattr(batch_size, "_seconds", timed)


def test_fastest_batch_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The most that there are samples for, or memory, where a batch takes as long whatever its size."""
    clock(monkeypatch, lambda number: 1.0)
    model = Costly()
    predict(tmp_path / "a.parquet", model, loader(64, 2), batch_size="auto")
    assert model.sizes == [64]
    clock(
        monkeypatch, lambda number: 1.0 if number < 3 else 2.0 ** (number - 2)
    )  # from 16 on, twice as many are no gain
    model = Costly()
    predict(tmp_path / "e.parquet", model, loader(64, 2), batch_size="auto")
    assert model.sizes == [8] * 8
    clock(monkeypatch, lambda number: 1.0)
    model = Costly(limit=8)
    predict(tmp_path / "b.parquet", model, loader(64, 2), batch_size="auto")
    assert model.sizes == [8] * 8
    model = Costly(fails=True)
    with pytest.warns(
        UserWarning, match=r"could not try predict_step .*ValueError: not yet\), and keeps the loader's 2"
    ):
        predict(tmp_path / "c.parquet", model, loader(64, 2), batch_size="auto")
    assert model.sizes == [2] * 32
    drawn = []
    for name, size in (("d", "auto"), ("f", 8)):  # to try draws no random numbers
        torch.manual_seed(0)
        predict(tmp_path / f"{name}.parquet", Costly(), loader(64, 2), strategy="ddp", devices=2, batch_size=size)
        assert values(tmp_path / f"{name}.parquet") == [2.0 * one for one in range(64)]
        drawn.append(torch.rand(1))
    assert drawn[0] == drawn[1]


# --------------------------------------------------------------------------------------------- as under lightning


class Lists(BasePredictionWriter):
    """A writer of the user's own."""

    def __init__(self, folder: Path) -> None:
        super().__init__("batch_and_epoch")
        self.folder = folder

    def write_on_batch_end(
        self, trainer: Any, pl_module: Any, prediction: Any, batch_indices: Sequence[int] | None, batch: Any,
        batch_idx: int, dataloader_idx: int,
    ) -> None:  # fmt: skip
        found = [prediction.tolist(), batch_indices]
        (self.folder / f"{trainer.global_rank}-{dataloader_idx}-{batch_idx}.json").write_text(json.dumps(found))

    def write_on_epoch_end(self, trainer: Any, pl_module: Any, predictions: Any, batch_indices: Any) -> None:
        whole = [[one.tolist() for one in predictions], batch_indices]
        (self.folder / f"epoch-{trainer.global_rank}.json").write_text(json.dumps(whole))


@pytest.mark.parametrize("workers", [1, 2])
def test_lightnings_prediction_writers(workers: int, tmp_path: Path) -> None:
    """They get every batch with its indices, and all at the end; predictions are returned as without them."""
    trainer = make_trainer("ddp", workers, callbacks=Lists(tmp_path))
    returned = trainer.predict(Model(), loader(20, 3))
    assert torch.cat(returned).tolist() == [2.0 * one for one in range(20)]
    assert [len(one) for one in returned] == [3] * 6 + [2]
    batches = [json.loads(path.read_text()) for path in tmp_path.glob("[0-9]*.json")]
    assert sorted(index for _, indices in batches for index in indices) == list(range(20))
    assert all(prediction == [2.0 * index for index in indices] for prediction, indices in batches)
    epochs = [json.loads((tmp_path / f"epoch-{rank}.json").read_text()) for rank in range(workers)]
    for predictions, (indices,) in epochs:
        assert predictions == [[2.0 * index for index in one] for one in indices]
    assert sorted(index for _, (indices,) in epochs for one in indices for index in one) == list(range(20))


def test_predictions_are_returned_on_request(tmp_path: Path) -> None:
    writers = [PredictionWriter(tmp_path / "a.parquet"), PredictionWriter(tmp_path / "b.pt", columns={"x": 1})]
    trainer = make_trainer("ddp", 2, callbacks=writers)
    returned = trainer.predict(Model(), loader(), return_predictions=True)
    assert torch.cat(returned).tolist() == values(tmp_path / "a.parquet") == [2.0 * one for one in range(20)]
    assert torch.load(tmp_path / "b.pt")["x"].tolist() == list(range(20))
    assert writers[0].samples == (20,) or writers[0].samples == ()


class Hooks(Callback):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_predict_batch_start(
        self, trainer: Any, module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.seen.append(("start", None if batch is None else batch[0].tolist(), batch_idx, dataloader_idx))

    def on_predict_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        progress = trainer.predict_loop.batch_progress.current
        self.seen.append(("end", copy.copy(outputs), batch_idx, dataloader_idx, vars(progress).copy()))

    def on_predict_epoch_end(self, trainer: Any, module: Any) -> None:
        self.seen.append("epoch end")


class Plain(LightningModule):
    """Without an index of the batch, with hooks of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1)
        self.seen: list[Any] = []

    def predict_step(self, batch: Any) -> Any:
        return None if 4.0 in batch[0] else self.net(batch[0][:, None]).dtype

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.seen.append((outputs, batch_idx, self._current_fx_name))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [one + 1 for one in batch]


class Several(LightningModule):
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> Any:
        return {"x": batch[0] * dataloader_idx}


class Fetching(LightningModule):
    """Takes its batches itself."""

    def predict_step(self, dataloader_iter: Any) -> Any:
        batch, batch_idx, _ = next(dataloader_iter)
        return batch[0] + batch_idx


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
@pytest.mark.parametrize("profiler", [None, "simple"])
@pytest.mark.parametrize("kind", [Plain, Several, Fetching])
def test_hooks_and_values_are_those_of_lightning(kind: Any, profiler: Any, precision: Any, recwarn: Any) -> None:
    seen = []
    for make in (Trainer, None):
        torch.manual_seed(0)
        hooks, module = Hooks(), kind()
        options: dict[str, Any] = {"callbacks": hooks, "profiler": profiler, "precision": precision}
        if make is None:
            trainer: Any = make_trainer("auto", 1, **options)
        else:
            quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
            trainer = make(accelerator="cpu", devices=1, **dict.fromkeys(quiet, False), **options)
        loaders = [loader(7), loader(4, shuffle=False)] if kind is Several else loader(7)
        returned = trainer.predict(module, loaders)
        actions = {name.split("]")[-1] for name in getattr(trainer.profiler, "recorded_durations", {})}
        seen.append(repr((hooks.seen, returned, getattr(module, "seen", None), sorted(actions))))
    assert re.sub(r"_(IndexBatch|Seen)\w+", "", seen[0]) == re.sub(r"_(IndexBatch|Seen)\w+", "", seen[1])


# ------------------------------------------------------------------------------------------------ read elsewhere


def test_duckdb_and_verification(tmp_path: Path) -> None:
    output = tmp_path / "p.parquet"
    predict(output, columns={"id": 1})
    (row,) = duckdb.sql(f"select count(*), sum(prediction), max(id) from '{output}'").fetchall()
    assert row == (20, 380.0, 19)
    assert verify(output).samples == (20,)
    whole = output.read_bytes()
    output.write_bytes(whole[:-1])
    with pytest.raises(DamagedPredictionsError, match="bytes were written|were written: it is cut off"):
        verify(output)
    output.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    with pytest.raises(DamagedPredictionsError, match="SHA-256"):
        verify(output)


MEMORY = """
import sys
from pathlib import Path
from tests.predictions.test_prediction_writer import peak_of
print(peak_of(int(sys.argv[1]), Path(sys.argv[2])))
"""


class Large(torch.utils.data.Dataset):
    """Samples that are made from their indices."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        index = torch.tensor(indices)
        return [torch.stack([index, index % 7, index % 13], 1).float(), index]


def peak_of(samples: int, output: Path) -> int:
    """Return the peak of this process's memory, in bytes, after a prediction of so many samples."""
    data = DataLoader(Large(samples), 1024, collate_fn=lambda batch: batch)
    predict(output, data=data, columns={"id": 1})
    assert verify(output).samples == (samples,)
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) << 10  # type: ignore[index]


@pytest.mark.parametrize("ending", [".parquet", ".zarr"])
def test_memory_does_not_grow_with_the_samples(ending: str, run_command: RunCommand, tmp_path: Path) -> None:
    """The peak of two million samples is within 10 % of that of a hundred thousand; files of tensors are mapped."""
    peaks = []
    for samples in (100_000, 2_000_000):
        output = tmp_path / f"{samples}{ending}"
        ended = run_command(python("-c", MEMORY, str(samples), str(output)))
        assert ended.code == 0, ended.output
        peaks.append(int(ended.output.split()[-1]))
    assert peaks[1] <= 1.1 * peaks[0], peaks
