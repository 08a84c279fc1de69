"""Write a module as a program that runs without its class, and compare the two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from itwinai.checkpoints.convert import written_beside
from itwinai.compat.noise import known_noise_silenced
from itwinai.errors import ConfigurationError, ExportError, PredictorError, require
from itwinai.warn import warn_user

ENDINGS = (".onnx", ".pt2")


def export(module: nn.Module, target: str | Path, example: Any = None) -> None:
    """Write a module's ``forward`` for ONNX (``.onnx``) or as ``torch.export`` saves it (``.pt2``), and check it.

    The program takes any number of rows where the module allows that: the first dimension of each argument is left
    open. It is run on the example and on one row more, and written only if its outputs are those of the module.

    Args:
        module: on the CPU; it is put into evaluation mode.
        target: the file to write; its extension selects the format.
        example: what ``forward`` takes, a tuple for several arguments; by default the module's
            ``example_input_array``.

    Raises:
        ConfigurationError: there is no example, or the extension is unknown.
        PredictorError: forward fails with the example.
        ExportError: the outputs of the program differ from those of the module.
        MissingPackageError: a package that ONNX needs is not installed.
    """
    target = Path(target)
    if target.suffix not in ENDINGS:
        raise ConfigurationError(
            f"Unknown file extension in {target}: use .onnx or .pt2. `itwinai checkpoint export` also writes "
            ".safetensors: the weights alone."
        )
    if example is None:
        example = getattr(module, "example_input_array", None)
    if example is None:
        raise ConfigurationError(
            f"{type(module).__name__} has no example_input_array, and an export needs an example of forward's inputs. "
            "Set self.example_input_array = torch.zeros(1, ...) in its __init__, or export from Python: "
            "Predictor.load(...).export(..., example=array)."
        )
    arguments = example if isinstance(example, tuple) else (example,)
    if not all(isinstance(argument, Tensor) for argument in arguments):
        kinds = ", ".join(type(argument).__name__ for argument in arguments)
        raise ConfigurationError(f"The example for the export must be a tensor or a tuple of tensors; got ({kinds}).")
    module.eval()
    # One row would be a constant of the program.
    example = tuple(
        _with_rows(argument, max(2, len(argument))) if argument.ndim else argument for argument in arguments
    )
    _try_example(module, example)
    write = _write_program if target.suffix == ".pt2" else _write_onnx
    with torch.no_grad(), known_noise_silenced():
        written_beside(target, lambda part: write(module, example, Path(part)))


def _try_example(module: nn.Module, example: Sequence[Tensor]) -> None:
    """Call forward once: the exporters tell of its errors on many pages.

    Raises:
        PredictorError: it fails.
    """
    try:
        with torch.no_grad():
            module(*example)
    except Exception as error:  # whatever the user's code raises
        shapes = ", ".join(str(tuple(argument.shape)) for argument in example)
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise PredictorError(
            f"{type(module).__name__}.forward fails with the example, of shape {shapes}: {text[0]}. Give an example of "
            "what forward takes."
        ) from None


def _write_program(module: nn.Module, example: Sequence[Tensor], path: Path) -> None:
    program = torch.export.export(module, tuple(example), dynamic_shapes=_open_rows(module, example))
    torch.export.save(program, path)
    exported = torch.export.load(path).module()
    _compare(module, example, path.name, lambda arguments: exported(*arguments))


def _write_onnx(module: nn.Module, example: Sequence[Tensor], path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, "Install it with `pip install 'itwinai[export]'`.", "The format ONNX")
    import onnxruntime

    torch.onnx.export(
        module,
        tuple(example),
        path,
        dynamo=True,
        external_data=False,
        dynamic_shapes=_open_rows(module, example),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(arguments: Sequence[Tensor]) -> list[Tensor]:
        given = {name: argument.numpy() for name, argument in zip(names, arguments, strict=True)}
        return [torch.as_tensor(output) for output in session.run(None, given)]

    _compare(module, example, path.name, run)


def _open_rows(module: nn.Module, example: Sequence[Tensor]) -> Any:
    """Return what tells torch that the number of rows is open, wherever the module allows that."""
    return tuple({0: torch.export.Dim.AUTO} if argument.ndim else None for argument in example)


def _with_rows(tensor: Tensor, rows: int) -> Tensor:
    """Return a tensor with another number of rows, repeating those that it has."""
    return tensor[torch.arange(rows) % len(tensor)]


def _compare(module: nn.Module, example: Sequence[Tensor], name: str, run: Any) -> None:
    """Compare a program with its module.

    Raises:
        ExportError: an output differs.
    """
    rows = next((len(argument) for argument in example if argument.ndim), 0)
    _compare_outputs(module, example, name, run(example))
    more = [_with_rows(argument, len(argument) + 1) if argument.ndim else argument for argument in example]
    try:
        outputs = run(more)
    except Exception as error:  # of torch and of ONNX Runtime, which have classes of their own for it
        warn_user(
            f"{name} accepts exactly {rows} rows: its module's forward depends on their number, and fails with "
            f"{rows + 1} ({str(error).strip().splitlines()[0]})."
        )
        return
    _compare_outputs(module, more, name, outputs)


def _compare_outputs(module: nn.Module, arguments: Sequence[Tensor], name: str, outputs: Any) -> None:
    expected, found = _tensors_in(module(*arguments)), _tensors_in(outputs)
    if len(expected) != len(found):
        raise ExportError(f"{name} has {len(found)} outputs, and its module {len(expected)}. It is not written.")
    for number, (one, other) in enumerate(zip(expected, found, strict=True)):
        try:
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4, equal_nan=True)
        except AssertionError as error:
            raise ExportError(
                f"Output {number} of {name} differs from that of {type(module).__name__}: {error}\nIt is not written. "
                "forward may draw random numbers, or branch on values of its input."
            ) from None


def _tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in an output in their order, as programs give them."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in _tensors_in(item)]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors_in(item)]
    return []
