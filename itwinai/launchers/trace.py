"""What a run changes on the trainer, the module and the callbacks, and how that is written back on the caller.

References between these objects travel by name, not by value: an attribute of a callback that is the module comes
back as the caller's module, and weights are copied into the caller's tensors, which other objects may hold.
"""

from __future__ import annotations

import functools
import io
import logging
import pickle
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import cloudpickle
from torch import Tensor, nn
from torchmetrics import Metric

from itwinai import compat

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

log = logging.getLogger(__name__)

Key = tuple[str, str]


class Shared:
    """The objects that exist on both sides of a launch, each under a key that is the same on both.

    Args:
        trainer: the trainer of this side, with its module attached.
    """

    def __init__(self, trainer: Trainer) -> None:
        module = trainer.lightning_module
        self.objects: dict[Key, Any] = {("trainer", ""): trainer, ("strategy", ""): trainer.strategy}
        self.objects |= {("module", name): submodule for name, submodule in module.named_modules()}
        self.objects |= {("tensor", name): tensor for name, tensor in named_tensors(module).items()}
        self.objects |= {("callback", str(index)): value for index, value in enumerate(compat.callbacks(trainer))}
        self.objects |= {("logger", str(index)): value for index, value in enumerate(trainer.loggers)}
        self.keys: dict[int, Key] = {id(value): key for key, value in reversed(self.objects.items())}

    def dumps(self, value: Any) -> bytes | None:
        """Pickle a value with references to shared objects by key, or return None if it cannot be pickled."""
        buffer = io.BytesIO()
        try:
            _Pickler(buffer, self.keys).dump(value)
        except Exception as error:  # the user's own __reduce__ and __getstate__ run here: anything can come
            log.debug("not sent back, cannot be pickled: %s", error)
            return None
        return buffer.getvalue()

    def loads(self, data: bytes) -> Any:
        """Unpickle what `dumps` made on the other side."""
        return _Unpickler(io.BytesIO(data), self.objects).load()


class Observer:
    """Remembers in a worker what the shared objects looked like before the run.

    Args:
        trainer: the worker's trainer, with its module attached.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.shared = Shared(trainer)
        self.attributes = self._pickled_attributes()
        self.names = self._attribute_names()
        self.structure = _structure(trainer.lightning_module)

    def _pickled_attributes(self) -> dict[Key, dict[str, bytes]]:
        return {
            key: {
                name: pickled
                for name, value in _own_attributes(shared).items()
                if (pickled := self.shared.dumps(value)) is not None
            }
            for key, shared in self.shared.objects.items()
        }

    def _attribute_names(self) -> dict[Key, frozenset[str]]:
        return {key: frozenset(_own_attributes(shared)) for key, shared in self.shared.objects.items()}

    def _callbacks(self) -> list[Any] | None:
        """Return the trainer's callbacks if they are others than before: keys, or class and attributes of new ones."""
        callbacks = compat.callbacks(self.trainer)
        keys = [self.shared.keys.get(id(callback)) for callback in callbacks]
        if keys == [key for key in self.shared.objects if key[0] == "callback"]:
            return None
        return [
            key
            or (type(callback), {name: self.shared.dumps(value) for name, value in _own_attributes(callback).items()})
            for key, callback in zip(keys, callbacks, strict=True)
        ]

    def trace(self) -> bytes:
        """Pickle all that the run changed since this observer was made."""
        trainer, module = self.trainer, self.trainer.lightning_module
        changed = {
            key: {name: value for name, value in attributes.items() if self.attributes[key].get(name) != value}
            for key, attributes in self._pickled_attributes().items()
        }
        # Layers that were added or replaced during the run have no counterpart on the caller: send the whole tree.
        same_structure = _structure(module) == self.structure
        trace = {
            "state": trainer.state,
            "should_stop": trainer.should_stop,
            "metrics": compat.read_metrics(trainer),
            "loops": compat.read_loops(trainer),
            "attributes": changed,
            "callbacks": self._callbacks(),
            # None in the place of a layer that configure_model makes would hide the layer.
            "removed": {key: self.names[key] - names for key, names in self._attribute_names().items()},
            "tensors": {name: tensor.detach() for name, tensor in named_tensors(module).items()}
            if same_structure
            else None,
            "tree": None if same_structure else {name: vars(module)[name] for name in _TREE},
            "requires_grad": {name: parameter.requires_grad for name, parameter in module.named_parameters()},
        }
        buffer = io.BytesIO()
        # Tensors go by value here: their values are what this is about.
        _Pickler(buffer, {i: key for i, key in self.shared.keys.items() if key[0] in ("trainer", "strategy")}).dump(
            trace
        )
        return buffer.getvalue()


def write_back(data: bytes, trainer: Trainer) -> None:
    """Write a trace from `Observer.trace` into the caller's trainer, module, callbacks and loggers."""
    shared = Shared(trainer)
    trace = shared.loads(data)
    module = trainer.lightning_module
    trainer.state = trace["state"]
    trainer.should_stop = trace["should_stop"]
    compat.write_loops(trainer, trace["loops"])
    compat.write_metrics(trainer, trace["metrics"])
    if trace["tree"] is not None:
        vars(module).update(trace["tree"])
    else:
        for name, tensor in named_tensors(module).items():
            tensor.detach().copy_(trace["tensors"][name])
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trace["requires_grad"][name])
    for key, names in trace["removed"].items():
        for name in names:
            vars(shared.objects[key]).pop(name, None)
    for key, attributes in trace["attributes"].items():
        _write_attributes(shared, shared.objects[key], attributes)
    if trace["callbacks"] is not None:
        compat.set_callbacks(trainer, [_callback(shared, told) for told in trace["callbacks"]])


def _write_attributes(shared: Shared, target: Any, attributes: dict[str, bytes | None]) -> None:
    for name, value in attributes.items():
        if value is None:
            continue
        try:
            loaded = shared.loads(value)
        except Exception as error:  # tqdm's bars, for example, can be pickled and not be made again
            log.debug("%s of %s is not written back, it cannot be made again here: %s", name, target, error)
            continue
        vars(target)[name] = loaded


def _callback(shared: Shared, told: Any) -> Any:
    """Return a callback that the run has ended with: one of the caller's, or a new one with what was sent of it."""
    kind, rest = told
    if isinstance(kind, str):  # a key
        return shared.objects[kind, rest]
    callback = kind.__new__(kind)
    _write_attributes(shared, callback, rest)
    return callback


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters and buffers by name, buffers outside its state dict included."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


# Functions would come back as copies, with copies of the globals that they use.
_CODE = (FunctionType, MethodType, BuiltinFunctionType, functools.partial, type)

_TREE = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


def _structure(module: LightningModule) -> dict[str, Any]:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in named_tensors(module).items()}


def _own_attributes(shared: Any) -> dict[str, Any]:
    """Return the attributes of a shared object that its owner, not a framework, keeps on it."""
    if isinstance(shared, (Tensor, Metric)):  # metrics are reset before each epoch, their values are in the trainer's
        return {}
    internals = compat.live_attributes(shared)
    if isinstance(shared, nn.Module):
        internals = compat.module_internals()
    elif not hasattr(shared, "__dict__") or _is_trainer_or_strategy(shared):
        return {}
    return {
        name: value for name, value in vars(shared).items() if name not in internals and not isinstance(value, _CODE)
    }


def _is_trainer_or_strategy(shared: Any) -> bool:
    from lightning.pytorch import Trainer
    from lightning.pytorch.strategies import Strategy

    return isinstance(shared, (Trainer, Strategy))


class _Pickler(cloudpickle.Pickler):
    def __init__(self, file: io.BytesIO, keys: dict[int, Key]) -> None:
        super().__init__(file)
        self.shared_keys = keys

    def persistent_id(self, obj: Any) -> tuple[str, str] | None:
        if isinstance(obj, type):
            # A class that came by value must come back as the caller's own class, not as a copy of it.
            class_id = compat.dynamic_class_id(obj)
            return None if class_id is None else ("class", class_id)
        return self.shared_keys.get(id(obj))

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor) and obj.device.type != "cpu":
            return _itself, (obj.detach().cpu(),)  # the caller may have no such device
        return super().reducer_override(obj)


def _itself(value: Any) -> Any:
    return value


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, objects: dict[Key, Any]) -> None:
        super().__init__(file)
        self.objects = objects

    def persistent_load(self, key: tuple[str, str]) -> Any:
        kind, name = key
        return compat.dynamic_class(name) if kind == "class" else self.objects[key]
