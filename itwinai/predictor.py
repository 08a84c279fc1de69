"""A trained model, loaded once and called many times."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from typing_extensions import Self, override

from itwinai.checkpoints.export import export
from itwinai.compat.noise import known_noise_silenced
from itwinai.errors import ConfigurationError, PredictorError
from itwinai.inference import frames, rows
from itwinai.inference.batching import Batching, Request
from itwinai.inference.loading import load_any
from itwinai.inference.module_runner import Method, ModuleRunner
from itwinai.tracebacks import hides_framework_frames

if TYPE_CHECKING:
    from itwinai.compat.lightning_trainer import PrecisionInput


class Predictor:
    """Predict with a trained module: with arrays, tensors or a DataFrame, from any number of threads.

    ::

        with Predictor.load("checkpoints/best.ckpt") as predictor:
            discharge = predictor(rain)  # a NumPy array gives a NumPy array, a tensor a tensor

    It calls the module's ``predict_step``, with ``batch_idx`` 0 and its hooks ``on_before_batch_transfer``,
    ``transfer_batch_to_device`` and ``on_after_batch_transfer``, so that the outputs are those of ``trainer.predict``.
    No other hook is called. The first dimension of every array counts the samples, and every output has to have one row
    per sample.

    Threads may call it at the same time. Its own thread runs one batch at a time and joins the inputs of equal form
    that are waiting; each caller gets its own rows, which equal those of a single call up to rounding. An input that
    fails raises in its own call only. `close`, or the end of a ``with`` block, ends the thread; so does the end of the
    interpreter. Forked processes can use it, but for GPUs; a pickled predictor chooses its device again.

    Args:
        module: in use from now on: it is moved to the device, put into evaluation mode and attached to a trainer. Pass
            a copy if you train it further. Other modules than LightningModules are called by ``forward``.
        device: ``"auto"`` for the first accelerator that is there, else the CPU; or as in ``torch.device``.
        precision: as in the Trainer, ``"bf16-mixed"`` for instance; by default 32 bit.
        method: ``"forward"`` calls the module's forward without hooks. A tuple is passed as positional arguments; a
            dict as keyword arguments if its keys are argument names.
        batch_size: maximum number of rows in a batch. Larger inputs are split, and inputs that wait at the same time
            are joined up to this size.
        max_wait: seconds that a batch which is not full waits for other callers. 0 joins the inputs that arrived
            during the last batch; higher values make batches fuller and single calls slower.

    Raises:
        ConfigurationError: the device is not available, or an argument is out of range.
    """

    @hides_framework_frames
    def __init__(
        self,
        module: nn.Module,
        *,
        device: str | torch.device = "auto",
        precision: PrecisionInput | None = None,
        method: Method | None = None,
        batch_size: int = 256,
        max_wait: float = 0.0,
    ) -> None:
        if batch_size < 1:
            raise ConfigurationError(f"batch_size must be at least 1; got {batch_size}.", argument="batch_size")
        if not 0 <= max_wait < float("inf"):
            raise ConfigurationError(f"max_wait must be a number of seconds; got {max_wait}.", argument="max_wait")
        self._options = {
            "device": device,
            "precision": precision,
            "method": method,
            "batch_size": batch_size,
            "max_wait": max_wait,
        }
        self.batch_size = batch_size
        self._runner = ModuleRunner(module, _method_of(module, method), _trainer(device, precision))
        self._batching = Batching(self._runner.run, batch_size, max_wait)

    @property
    def module(self) -> nn.Module:
        """The module, on its device."""
        return self._runner.module

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._runner.device

    @classmethod
    @hides_framework_frames
    def load(
        cls,
        source: str | Path,
        module_class: type[LightningModule] | str | None = None,
        *,
        init_args: Mapping[str, Any] | None = None,
        weights_only: bool = True,
        device: str | torch.device = "auto",
        precision: PrecisionInput | None = None,
        method: Method | None = None,
        batch_size: int = 256,
        max_wait: float = 0.0,
    ) -> Self:
        """Load a trained module, once.

        Args:
            source: a checkpoint of itwinai or of Lightning, a file or a folder of shards; an MLflow model: a folder,
                ``"runs:/RUN_ID/model"``, or ``"models:/NAME/VERSION"`` of the registry.
            module_class: the module's class, or its name as ``package.module.Class``. By default the one that the
                checkpoint names, which is imported: those of itwinai do, and those of Lightning where LightningCLI has
                chosen the class.
            init_args: arguments of the class beside the hyperparameters in the checkpoint, or in their place.
            weights_only: load nothing but tensors and plain values. Off, the file may execute any code.
            device: as for the class, like all that follow.
            precision: as for the class.
            method: as for the class.
            batch_size: as for the class.
            max_wait: as for the class.

        Raises:
            MissingCheckpointError: there is nothing at the path or address.
            CheckpointError: it is damaged, lacks hyperparameters, does not match the class, or holds pickled objects.
            ConfigurationError: the class is not named, or cannot be imported.
        """
        module = load_any(source, module_class, init_args, weights_only)
        return cls(module, device=device, precision=precision, method=method, batch_size=batch_size, max_wait=max_wait)

    @hides_framework_frames
    def __call__(self, inputs: Any) -> Any:
        """Predict.

        Args:
            inputs: a NumPy array, a tensor, or a DataFrame; or nested tuples, lists and dicts of arrays, tensors and
                columns, all with the same number of rows. Values without rows go to the module as they are. If
                ``predict_step`` unpacks its batch, pass a tuple: ``predictor((x,))`` for ``x = batch[0]``.

                Floats of NumPy and pandas get the type of the module's weights; integers and tensors stay as they are.
                A DataFrame becomes one array of shape (rows, columns), in the type of the module's weights; or a dict
                of its columns where ``predict_step`` (or ``forward``) takes a dict, or arguments with these names.

        Returns:
            What ``predict_step`` returns, for all rows: as tensors on the device of the inputs if there was a tensor
            among them, as NumPy arrays if there was none, and as a DataFrame with the same index for a DataFrame.

        Raises:
            PredictorError: inputs or outputs do not have one row per sample, or the predictor is closed.
        """
        tensors = self._tensors(inputs)
        request = Request(tensors, rows.count_rows(tensors))
        self._batching.submit(request)
        try:
            output, layout = request.future.result()
        except BaseException:
            request.future.cancel()  # of a caller that is interrupted
            raise
        if (device := _device_of(inputs)) is not None:
            return rows.map_leaves(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, output)
        output = rows.map_leaves(_as_array, output)
        frame = next((leaf for _, leaf in rows.leaves_of(inputs) if frames.is_frame(leaf)), None)
        return output if frame is None else frames.frame_of(output, layout, frame.index)

    @hides_framework_frames
    def export(self, path: str | Path, example: Any = None) -> None:
        """Write the module's ``forward`` for ONNX (``.onnx``) or as ``torch.export`` saves it (``.pt2``).

        The program is compared with the module, and takes any number of rows where the module allows that.

        Args:
            path: of the file; its ending says which format.
            example: what ``forward`` takes, arrays or tensors, a tuple for several arguments; by default the module's
                ``example_input_array``.

        Raises:
            ConfigurationError: there is no example, or the ending is unknown.
            PredictorError: forward fails with the example.
            ExportError: the outputs of the program differ from those of the module.
            MissingPackageError: a package that ONNX needs is not installed.
        """
        given = None if example is None else self._tensors(example)
        self._batching.call(lambda: export(copy.deepcopy(self.module).cpu(), path, given))

    def close(self) -> None:
        """Finish what was asked for, and end the thread; calls that follow raise `PredictorError`."""
        self._batching.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), copy.deepcopy(self.module).cpu(), self._options, self._batching.is_closed)

    @override
    def __repr__(self) -> str:
        closed = ", closed" if self._batching.is_closed else ""
        return f"{type(self).__name__}({type(self.module).__name__}, device={str(self.device)!r}{closed})"

    # ---------------------------------------------------------------------------------------------- the inputs

    def _tensors(self, inputs: Any) -> Any:
        """Return inputs with tensors in the place of arrays, columns and DataFrames."""
        if frames.is_frame(inputs) and frames.takes_columns(self._runner.function, list(inputs.columns)):
            inputs = frames.columns_of(inputs)
        return rows.map_leaves(self._as_tensor, inputs)

    def _as_tensor(self, value: Any) -> Any:
        if frames.is_frame(value):
            return frames.tensor_of(value, self._runner.dtype)
        if frames.is_series(value):
            value = value.to_numpy()
        if not isinstance(value, np.ndarray):
            return value
        if value.dtype.kind not in "biufc":
            raise PredictorError(f"An array of {value.dtype} does not hold numbers.")
        # Torch takes no negative strides, and warns of arrays that must not be changed.
        array = np.ascontiguousarray(value) if value.ndim else value
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        return tensor.to(self._runner.dtype) if value.dtype.kind == "f" else tensor


def _restored(cls: type[Predictor], module: nn.Module, options: dict[str, Any], closed: bool) -> Predictor:
    predictor = cls(module, **options)
    if closed:
        predictor.close()
    return predictor


def _method_of(module: nn.Module, asked: Method | None) -> Method:
    if asked not in (None, "predict_step", "forward"):
        raise ConfigurationError(f"method must be 'predict_step' or 'forward'; got {asked!r}.", argument="method")
    if isinstance(module, LightningModule):
        return asked or "predict_step"
    if asked == "predict_step":
        raise ConfigurationError(f"{type(module).__name__} is not a LightningModule, and has no predict_step.")
    return "forward"


def _trainer(device: str | torch.device, precision: PrecisionInput | None) -> Trainer:
    """Return a trainer that has what goes with a device and a precision."""
    chosen = None if device == "auto" else _parsed(device)
    index = 0 if chosen is None or chosen.index is None else chosen.index
    on_cpu = chosen is not None and chosen.type == "cpu"
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = log.level
    log.setLevel(logging.ERROR)  # which devices there are
    try:
        with known_noise_silenced():
            trainer = Trainer(
                accelerator="auto" if chosen is None else chosen.type,
                devices=1 if chosen is None or on_cpu else [index],
                precision=precision,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                plugins=[LightningEnvironment()],  # also within a job of several processes
            )
    except (MisconfigurationException, ValueError) as error:
        if chosen is not None and not _is_there(chosen):
            raise ConfigurationError(
                f"device={device!r} is not there: torch {torch.__version__} finds no such device on this machine. "
                "Leave it out ('auto') for what there is, or give 'cpu'.",
                argument="device",
            ) from None
        raise ConfigurationError(f"device={device!r}, precision={precision!r}: {error}") from None
    finally:
        log.setLevel(level)
    trainer.state.fn = TrainerFn.PREDICTING
    trainer.predicting = True
    return trainer


def _parsed(device: str | torch.device) -> torch.device:
    try:
        return torch.device(device)
    except RuntimeError as error:
        text = str(error).splitlines()[0]
        raise ConfigurationError(f"device={device!r}: {text} Or 'auto'.", argument="device") from None


def _is_there(device: torch.device) -> bool:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        return False
    return True


def _device_of(inputs: Any) -> torch.device | None:
    tensors = (leaf for _, leaf in rows.leaves_of(inputs) if isinstance(leaf, Tensor))
    return next((tensor.device for tensor in tensors), None)


def _as_array(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
