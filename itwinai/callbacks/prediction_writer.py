"""`PredictionWriter`: predictions in one file, in the order of the dataset, written while they are created."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Mapping, Sequence, Sized
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from typing_extensions import override

from itwinai.collectives import gather
from itwinai.data.batch_size import samples_in
from itwinai.drawn import Done, Drawn
from itwinai.errors import ConfigurationError, MissingPackageError
from itwinai.io.atomic import remove_parts
from itwinai.loops.prediction import LeanPredictionLoop
from itwinai.reporting.formatting import path_text

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from itwinai.predictions.shards import Shard, ShardBuffer, ShardFolder, Task


class PredictionWriter(BasePredictionWriter):
    """Write what ``predict_step`` returns to one file: each sample once, in the order of the dataset.

    Every worker writes shards to the folder ``<output>.partial`` while it predicts. At the end they are joined without
    being loaded, and the folder is removed. Run the same call again to resume an interrupted prediction, also with
    another number of workers: samples on disk are not predicted again. To keep memory constant, ``trainer.predict``
    returns nothing unless you pass ``return_predictions=True``. With ``fast_dev_run`` nothing is written.

    The column ``index`` is the index of the sample in the dataset; for an iterable dataset, its place in the order in
    which one process would predict. Further columns follow from what ``predict_step`` returns: a tensor of shape
    ``(batch, ...)`` is the column ``prediction``, with rows of shape ``(...)``; a dict has a column for each entry,
    named ``entry`` or ``entry.inner``; a tuple has ``prediction.0``, ``prediction.1``; a list with one element per
    sample may hold texts, numbers, dicts, and tensors of different lengths. bfloat16 becomes float32, and a complex
    number a pair. With several loaders the column ``loader`` tells which one a row is from.

    Args:
        output: path of the file; its extension selects the format. ``.parquet``: a table, for pandas, DuckDB...
            ``.zarr``: an array for each column, for xarray; if the dataset has ``coordinates``, a dict of names to
            arrays with a value per sample, they are stored too. ``.pt``, ``.safetensors``: a dict of tensors. With
            several nodes it has to be on a shared file system.
        columns: parts of each batch to store too, such as ids and targets: keys of a batch that is a dict, attributes
            of an object; or a dict of names to keys or positions, as in ``{"target": 1}`` for batches ``(x, y)``.
        overwrite: predict all samples, and replace an existing file and the shards of an interrupted prediction.
        batch_size: batch size to use instead of that of the loaders. ``"auto"`` tries larger ones on the first samples
            and uses the fastest that fits into memory; predictions may then differ in the last bits between machines.

    Raises:
        ConfigurationError: the extension is unknown; or, when predicting, the file exists, or an interrupted
            prediction had other data, weights or columns.
        MissingPackageError: pyarrow is not installed.

    Example:
        >>> trainer = ItwinaiTrainer(strategy="ddp", devices=2, callbacks=PredictionWriter("predictions.parquet"))
        >>> trainer.predict(module, loader)
    """

    def __init__(
        self,
        output: str | Path,
        columns: Sequence[str] | Mapping[str, str | int] = (),
        overwrite: bool = False,
        batch_size: int | Literal["auto"] | None = None,
    ) -> None:
        super().__init__("batch")
        try:
            from itwinai.predictions.formats import format_of
        except ImportError as error:
            raise MissingPackageError(
                "PredictionWriter needs the package pyarrow: pip install 'itwinai[predictions]'"
            ) from error
        self.output = Path(output).absolute()  # workers of Ray may have another working folder
        format_of(Path(output))
        self.columns = dict(columns) if isinstance(columns, Mapping) else _named(columns)
        self.overwrite = overwrite
        self.batch_size = batch_size
        if not (batch_size is None or batch_size == "auto" or (isinstance(batch_size, int) and batch_size > 0)):
            raise ConfigurationError(
                f"batch_size must be a number of samples or 'auto'; got {batch_size!r}.", argument="batch_size"
            )
        self.samples: tuple[int, ...] = ()
        self._buffers: dict[int, ShardBuffer] = {}
        self._coordinates: list[Mapping[str, np.ndarray[Any, Any]]] = []
        self._resumed = 0
        self._began = 0.0

    @property
    def _folder(self) -> ShardFolder:
        from itwinai.predictions.shards import ShardFolder

        return ShardFolder(self.output.with_name(f"{self.output.name}.partial"))

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the trainer tells which samples a batch has.

        Raises:
            ConfigurationError: it is Lightning's own.
        """
        if stage == "predict" and not isinstance(trainer.predict_loop, LeanPredictionLoop):
            raise ConfigurationError(
                "PredictionWriter needs ItwinaiTrainer with a version of Lightning that it knows: only its loop tells "
                "which samples a batch has. Replace Trainer by ItwinaiTrainer (from itwinai import ItwinaiTrainer), "
                "which takes the same arguments."
            )

    def check_output(self) -> None:
        """Raise a `ConfigurationError` if the file exists, nothing is resumed, and it is not to be replaced."""
        if self.output.exists() and not self.overwrite and self._folder.task() is None:
            raise ConfigurationError(
                f"{path_text(self.output)} exists. Give another name, delete it, or replace it with "
                "PredictionWriter(overwrite=True) (itwinai predict --overwrite).",
                argument="output",
            )

    def begin_predictions(
        self, trainer: Trainer, samples: list[int | None], limits: list[int | None]
    ) -> list[tuple[Done, int | None]]:
        """Return what an interrupted prediction has done, and the number of batches to predict, for each loader.

        Raises:
            ConfigurationError: there is a file, or an interrupted prediction of something else.
        """
        from itwinai.predictions.shards import Task

        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return [(Done(), None) for _ in samples]
        begun: tuple[list[np.ndarray[Any, Any]], tuple[int | None, ...]] | ConfigurationError | None = None
        if trainer.is_global_zero:
            module = trainer.lightning_module
            weights = None if getattr(trainer.strategy, "zero_stage_3", False) else _hash(module)
            task = Task(tuple(samples), tuple(limits), tuple(self.columns), weights, type(module).__name__)
            try:
                begun = self._begin(task, trainer.world_size)
            except ConfigurationError as error:
                begun = error
        begun = trainer.strategy.broadcast(begun)
        if isinstance(begun, ConfigurationError):
            raise begun
        assert begun is not None
        done, limits_before = begun
        self._resumed = sum(map(len, done))
        self._began = time.monotonic()
        self._buffers = {}
        self._coordinates = [_coordinates_of(loader) for loader in _loaders(trainer)]
        return [(Done(numbers), limit) for numbers, limit in zip(done, limits_before, strict=True)]

    def _begin(self, task: Task, world_size: int) -> tuple[list[np.ndarray[Any, Any]], tuple[int | None, ...]]:
        """Look at what is on disk; return what is done for each loader, and the limits that it was begun with."""
        from itwinai.predictions.merge import numbers_of

        folder = self._folder
        remove_parts(self.output.parent)  # of one that was killed
        if self.overwrite:
            folder.remove()
        self.check_output()
        before = folder.task()
        if before is None or not (shards := folder.shards()):
            folder.begin(task)
            return [np.empty(0, np.int64) for _ in task.loaders], task.limits
        if (difference := before.differs_from(task)) is not None:
            raise ConfigurationError(
                f"{path_text(folder.path)} holds an interrupted prediction of something else: {difference}. Give "
                "another name for the output, delete the folder, or predict all samples again with "
                "PredictionWriter(overwrite=True) (itwinai predict --overwrite).",
                argument="output",
            )
        folder.clean()
        done: list[list[np.ndarray[Any, Any]]] = [[np.empty(0, np.int64)] for _ in task.loaders]
        for shard in shards:
            if shard.order == "rank" and shard.world_size != world_size:
                raise ConfigurationError(
                    f"{path_text(folder.path)} holds an interrupted prediction of a dataset that divides itself among "
                    f"{shard.world_size} workers, and this run has {world_size}: it is unknown which samples are "
                    f"missing. Use {shard.world_size} workers, or predict all samples again with overwrite=True."
                )
            done[shard.loader].append(numbers_of(shard.keys(), shard.order))
        numbers = [np.unique(np.concatenate(parts)) for parts in done]
        if found := sum(map(len, numbers)):
            rank_zero_info(
                f"itwinai: resuming {path_text(self.output)}: {_so_many(found, shards)} are predicted already"
            )
        return numbers, before.limits

    @override
    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Add the rows of a batch to this worker's shards.

        Raises:
            ConfigurationError: ``predict_step`` has returned something that has not a row for each sample.
        """
        from itwinai.predictions.columns import columns_of, picked, rows_in
        from itwinai.predictions.shards import ROW_BITS, ShardBuffer

        assert isinstance(trainer.predict_loop, LeanPredictionLoop)
        drawn = trainer.predict_loop.drawn
        if drawn is None:
            number = batch_idx * trainer.world_size + trainer.global_rank
            drawn = Drawn("sample", number, batch_indices) if batch_indices else Drawn("rank", number)
        if drawn.indices is not None:
            rows = len(drawn.indices)
            keys = np.asarray(drawn.indices, np.int64)
        else:
            in_batch = samples_in(batch)  # a guess for batches of a kind of their own
            rows = in_batch or 1 if (found := rows_in(prediction)) is None else found
            keys = (drawn.number << ROW_BITS) + np.arange(rows, dtype=np.int64)
        columns = picked(batch, self.columns, rows) | columns_of(prediction, rows)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        buffer = self._buffers.get(dataloader_idx)
        if buffer is None:
            self._check_columns(columns)
            for other in self._buffers.values():  # loaders come one after the other
                other.flush()
            buffer = self._buffers[dataloader_idx] = ShardBuffer(
                self._folder, dataloader_idx, drawn.order, trainer.global_rank, trainer.world_size
            )
        buffer.add(keys, columns)

    def _check_columns(self, columns: Mapping[str, Any]) -> None:
        """Raise an error where the first batch has texts that the format cannot hold, before all are predicted.

        Raises:
            ConfigurationError: that is so.
        """
        from itwinai.predictions.columns import is_text
        from itwinai.predictions.formats import format_of

        if not format_of(self.output).holds_texts:
            for name, column in columns.items():
                if is_text(column):
                    raise ConfigurationError(
                        f"'{name}' is text, and {self.output.suffix} holds numbers. Write Parquet "
                        f"({path_text(self.output.with_suffix('.parquet'))}), or leave it out."
                    )

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the shards of all workers.

        Raises:
            ConfigurationError: the workers do not share a file system, or the format cannot hold the columns.
        """
        from itwinai.predictions.joined import join

        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for buffer in self._buffers.values():
            buffer.flush()
        own = {index: buffer.rows for index, buffer in self._buffers.items()}
        gathered = gather(trainer, own)
        failure: BaseException | None = None
        if trainer.is_global_zero:
            try:
                self._check_shared(gathered)
                loaders = len(self._coordinates)
                manifest = join(self._folder, self.output, loaders, self._coordinates, _about(trainer))
                self.samples = manifest.samples
                self._folder.remove()
            except Exception as error:  # any error is raised on all workers
                failure = error
        failure = trainer.strategy.broadcast(failure)
        if failure is not None:
            raise failure
        self._buffers = {}
        if trainer.is_global_zero:
            seconds = max(time.monotonic() - self._began, 1e-9)
            new = sum(sum(one.values()) for one in gathered)
            rank_zero_info(
                f"itwinai: {sum(self.samples):,} samples in {path_text(self.output)} ({new:,} in {seconds:.1f} s, "
                f"{new / seconds:,.0f} samples/s)"
            )

    def _check_shared(self, gathered: list[dict[int, int]]) -> None:
        """Raise an error if not all that the workers have written is in the folder."""
        there = sum(shard.rows for shard in self._folder.shards())
        written = sum(sum(one.values()) for one in gathered)
        if there < written and not self._resumed:
            raise ConfigurationError(
                f"The workers have written {written:,} predictions to {self._folder.path}, and rank 0 finds {there:,} "
                "of them. Write to a file system that all nodes share."
            )

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write what this worker has predicted, so that the next call need not."""
        buffers, self._buffers = self._buffers, {}
        try:
            for buffer in buffers.values():
                buffer.flush()
        except ConfigurationError as error:  # of the batches that have failed, which the user sees
            log.debug(f"the last predictions are not kept: {error}")
        without = " without overwrite" if self.overwrite else ""
        refused = isinstance(exception, ConfigurationError)  # which the same call would be too
        if trainer.state.fn == TrainerFn.PREDICTING and self._folder.shards():
            if refused:
                return
            rank_zero_info(
                f"itwinai: the predictions so far are in {path_text(self._folder.path)}; run the same call{without} to "
                "resume"
            )
        elif trainer.state.fn == TrainerFn.PREDICTING and trainer.world_size == 1:
            self._folder.remove()  # there is nothing in it to resume from


def _so_many(number: int, shards: list[Shard]) -> str:
    """Return what a resumed prediction has, as it counts it."""
    return f"{number:,} {'samples' if all(shard.order == 'sample' for shard in shards) else 'batches'}"


def _named(columns: Sequence[str]) -> dict[str, str | int]:
    if isinstance(columns, str):
        columns = [name.strip() for name in columns.split(",") if name.strip()]
    return {str(name): name for name in columns}


def _loaders(trainer: Trainer) -> list[Any]:
    loop = trainer.predict_loop
    return loop.loaders if isinstance(loop, LeanPredictionLoop) else []


def _coordinates_of(loader: Any) -> Mapping[str, np.ndarray[Any, Any]]:
    """Return what a dataset says goes with its samples.

    Raises:
        ConfigurationError: an array has not a value for each sample.
    """
    dataset = getattr(loader, "dataset", None)
    given = getattr(dataset, "coordinates", None)
    if not isinstance(given, Mapping) or not isinstance(dataset, Sized):
        return {}
    arrays = {str(name): np.asarray(values) for name, values in given.items()}
    for name, values in arrays.items():
        if values.shape[:1] != (len(dataset),):
            raise ConfigurationError(
                f"{type(dataset).__name__}.coordinates['{name}'] has the shape {values.shape}, and the dataset has "
                f"{len(dataset)} samples. Give one value for each."
            )
    return arrays


def _about(trainer: Trainer) -> dict[str, Any]:
    return {
        "module": type(trainer.lightning_module).__name__,
        "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
        "workers": trainer.world_size,
        "itwinai": version("itwinai"),
    }


def _hash(module: LightningModule) -> str:
    """Return a fingerprint of the weights of a module."""
    checksum = 0
    for name, value in sorted(module.state_dict().items()):
        checksum = zlib.crc32(name.encode(), checksum)
        if isinstance(value, Tensor):
            dense = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
            content = dense.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        else:
            content = repr(value).encode()
        checksum = zlib.crc32(content, checksum)
    return f"{checksum:08x}"
