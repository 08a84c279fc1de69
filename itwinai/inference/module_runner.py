"""Run batches through a module as the trainer does in ``predict``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import DoublePrecision, HalfPrecision
from torch import Tensor, nn

from itwinai.errors import PredictorError
from itwinai.inference import rows
from itwinai.inference.rows import Layout
from itwinai.tracebacks import add_note

Method = Literal["predict_step", "forward"]


class ModuleRunner:
    """Runs batches of tensors through a module.

    Args:
        module: is moved to the trainer's device, and put into evaluation mode.
        method: what of the module is called.
        trainer: has the device and the precision; the module's hooks ask it whether it is training.
    """

    def __init__(self, module: nn.Module, method: Method, trainer: Trainer) -> None:
        self.device: torch.device = trainer.strategy.root_device
        self._precision = trainer.precision_plugin
        self._method = method
        self._layouts: dict[Any, Layout] = {}
        self.module: nn.Module = self._precision.convert_module(module).to(self.device).eval()
        if isinstance(module, LightningModule):
            module.trainer = trainer

    @property
    def dtype(self) -> torch.dtype:
        """The type of the module's weights."""
        floats = (one.dtype for one in self.module.parameters() if one.is_floating_point())
        return next(floats, torch.get_default_dtype())

    @property
    def function(self) -> Callable[..., Any]:
        """What decides on the form of the batch: the default ``predict_step`` calls ``forward``."""
        module: Any = self.module
        own = self._method == "predict_step" and type(module).predict_step is not LightningModule.predict_step
        function: Callable[..., Any] = module.predict_step if own else module.forward
        return function

    def run(self, inputs: Any, number: int) -> tuple[Any, Layout]:
        """Run a batch.

        Args:
            inputs: nested tensors.
            number: of their rows.

        Returns:
            The output, on the CPU, and where its rows are.

        Raises:
            PredictorError: the output does not have one row per sample.
        """
        try:
            output = self._predict(inputs)
        except Exception as error:
            add_note(
                error, f"{self._called()} was called with {rows.description(inputs)}.{self._hint(inputs, failed=True)}"
            )
            raise
        form = rows.form_of(inputs, sizes=False)
        layout = self._layouts.get(form)
        if layout is None:
            layout = self._layout(inputs, output, number)
            if number:
                self._layouts[form] = layout
        rows.check(output, layout, number)
        return output, layout

    def _layout(self, inputs: Any, output: Any, number: int) -> Layout:
        """Find the rows of an output by running another number of rows, if there are any."""
        other = 0 if number == 0 else 3 if number == 2 else 2
        probe = self._predict(rows.repeat_first(inputs, other)) if number else output
        try:
            return rows.layout_of(output, number, probe, other)
        except PredictorError as error:
            raise PredictorError(f"{error}{self._hint(inputs)}") from None

    def _predict(self, inputs: Any) -> Any:
        module: Any = self.module
        with torch.inference_mode(), self._context():
            batch = self._precision.convert_input(inputs)
            if self._method == "predict_step":
                batch = module.on_before_batch_transfer(batch, 0)
                batch = module.transfer_batch_to_device(batch, self.device, 0)
                batch = module.on_after_batch_transfer(batch, 0)
                output = self._call_step(batch)
            else:
                output = self._call_forward(move_data_to_device(batch, self.device))
            return move_data_to_device(output, torch.device("cpu"))

    def _context(self) -> AbstractContextManager[Any]:
        # Theirs changes the default type of the whole process, where other threads are at work.
        if isinstance(self._precision, (HalfPrecision, DoublePrecision)):
            return nullcontext()
        return self._precision.forward_context()

    def _call_step(self, batch: Any) -> Any:
        step: Any = self.module.predict_step
        parameters = inspect.signature(step).parameters.values()
        takes_index = len(parameters) > 1 or any(one.kind is one.VAR_POSITIONAL for one in parameters)
        return step(batch, 0) if takes_index else step(batch)

    def _call_forward(self, batch: Any) -> Any:
        if isinstance(batch, (tuple, list)):
            return self.module(*batch)
        if isinstance(batch, Mapping) and batch.keys() <= inspect.signature(self.module.forward).parameters.keys():
            return self.module(**batch)
        return self.module(batch)

    def _called(self) -> str:
        return f"{type(self.module).__name__}.{self._method}"

    def _hint(self, inputs: Any, failed: bool = False) -> str:
        if failed and isinstance(inputs, (tuple, list)):
            number = rows.count_rows(inputs)
            return f" The first dimension counts the samples, here {number}: for a single one pass (x[None],)."
        if not isinstance(inputs, Tensor) or self.function == self.module.forward:
            return ""
        return (
            f" If predict_step of {type(self.module).__name__} unpacks its batch, as in `x = batch[0]`, pass a tuple: "
            "predictor((x,)). Or load it with method='forward'."
        )
