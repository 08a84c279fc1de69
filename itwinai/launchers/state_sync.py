"""What a run changes on the caller's objects, and how that is written back.

References between these objects travel by name, not by value: an attribute of a callback that is the module comes
back as the caller's module, and what has changed is written into the caller's own tensors, lists and objects, which
others, such as the script, may hold.
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import pickle
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import cloudpickle
import numpy as np
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torchmetrics import Metric

from itwinai.compat import cloudpickle as compat_cloudpickle
from itwinai.compat import lightning_logging, lightning_trainer
from itwinai.compat import torch as compat_torch
from itwinai.compat import torchmetrics as compat_torchmetrics
from itwinai.launchers.known_objects import (
    Container,
    Key,
    attributes,
    children,
    contents,
    is_known_kind,
    is_own_object,
    remove_attribute,
    restore,
    set_attribute,
)
from itwinai.warn import warn_user

log = logging.getLogger(__name__)

# What is larger is not sent back. It counts as unchanged if it is as long as before.
_SENT_BYTES = 256 * 2**20
# Tensors from this size on are compared by their version, arrays by a checksum.
_LARGE = 2**20
_MAX_OBJECTS = 10_000

CONTENTS = ""
"""The name under which the elements of a container travel beside its attributes."""


class Shared:
    """The objects that exist on both sides of a launch, each under a key that is the same on both.

    These are the trainer's parts, the datamodule and the data of a call, and the lists, dictionaries, arrays, tensors,
    modules, random number generators and objects of the user's own classes that are reached from them.

    Args:
        trainer: the trainer of this side, with its module attached.
        arguments: of the call.

    Attributes:
        objects: by key.
        keys: the key of each object, by its id.
        held: the tensors among them that are not part of the trained module, such as those of an average of it.
        modules: the modules among them that are not part of the trained one, by their path.
    """

    def __init__(self, trainer: Trainer, arguments: tuple[Any, ...]) -> None:
        module = trainer.lightning_module
        self.objects: dict[Key, Any] = {("trainer", ""): trainer, ("strategy", ""): trainer.strategy}
        self.objects |= {("module", name): submodule for name, submodule in module.named_modules()}
        self.objects |= {("tensor", name): tensor for name, tensor in named_tensors(module).items()}
        self.objects |= {
            ("callback", str(index)): value for index, value in enumerate(lightning_trainer.callbacks(trainer))
        }
        self.objects |= {("logger", str(index)): value for index, value in enumerate(trainer.loggers)}
        if (datamodule := lightning_trainer.datamodule_of(arguments)) is not None:
            self.objects["datamodule", ""] = datamodule
        self.keys: dict[int, Key] = {id(value): key for key, value in reversed(self.objects.items())}
        self.held: dict[Key, Tensor] = {}
        self.modules: dict[str, nn.Module] = {}
        self._reach(arguments)

    def _reach(self, arguments: tuple[Any, ...]) -> None:
        """Find what hangs on the shared objects and the arguments, in an order that is the same on both sides."""
        waiting = [(f"argument {index}", value) for index, value in enumerate(arguments)]
        for (kind, name), shared in self.objects.items():
            waiting += [(f"{kind} {name}.{attribute}", value) for attribute, value in own_attributes(shared).items()]
        seen: set[int] = set()
        while waiting and len(seen) < _MAX_OBJECTS:
            path, value = waiting.pop(0)
            if id(value) in seen or id(value) in self.keys:
                continue
            seen.add(id(value))
            if isinstance(value, nn.Module):
                self.modules[path] = value
                for name, part in (*value.named_modules(), *named_tensors(value).items()):
                    self._add(f"{path}|{name}", part)
                    if isinstance(part, nn.Module):
                        waiting += [(f"{path}|{name}.{what}", child) for what, child in own_attributes(part).items()]
            elif isinstance(value, Tensor) or is_known_kind(value):
                self._add(path, value)
            waiting += [(f"{path}{name}", child) for name, child in children(value)]

    def _add(self, path: str, value: Any) -> None:
        key = ("object", path)
        if key in self.objects or id(value) in self.keys:
            return
        self.objects[key] = value
        self.keys[id(value)] = key
        if isinstance(value, Tensor):
            self.held[key] = value

    def forget(self, path: str) -> None:
        """Let a module that has other layers than before travel as a whole, and not by its parts."""
        for key in [key for key in self.objects if key[1].startswith(f"{path}|")]:
            self.keys.pop(id(self.objects.pop(key)), None)
            self.held.pop(key, None)

    def dumps(self, value: Any) -> bytes | None:
        """Pickle a value with references to shared objects by key; None if it cannot be pickled, or is too large."""
        sink = _Limited(_SENT_BYTES)
        try:
            _Pickler(sink, self.keys).dump(value)
        except _TooLargeError:
            log.info("not sent back: a %s of more than %d MB", type(value).__name__, _SENT_BYTES >> 20)
            return None
        except Exception as error:  # the user's own __reduce__ and __getstate__ run here: anything can come
            log.debug("not sent back, cannot be pickled: %s", error)
            return None
        return sink.buffer.getvalue()

    def loads(self, data: bytes) -> Any:
        """Unpickle what `dumps` made on the other side."""
        return _Unpickler(io.BytesIO(data), self.objects).load()

    def fingerprint(self, value: Any) -> Any:
        """Return a fingerprint that is equal as long as a value has not changed; None if there is none."""
        sink = _Hash(_SENT_BYTES)
        try:
            _ComparingPickler(sink, self.keys).dump(value)
        except _TooLargeError:
            return "large", type(value).__name__, sized_len(value)
        except Exception:  # as in `dumps`, where it is told
            return None
        return sink.digest.digest()


class StateDiff:
    """Remembers in a worker what the shared objects looked like before the run.

    Args:
        trainer: the worker's trainer, with its module attached.
        arguments: of the call.
    """

    def __init__(self, trainer: Trainer, arguments: tuple[Any, ...]) -> None:
        self.trainer = trainer
        self.shared = Shared(trainer, arguments)
        self.fingerprints = self._fingerprints()
        self.held = {key: self.shared.fingerprint(tensor.detach()) for key, tensor in self.shared.held.items()}
        self.structures = {path: _structure(module) for path, module in self.shared.modules.items()}
        self.names = self._names()
        self.all_names = {key: frozenset(attributes(shared)) for key, shared in self._with_attributes()}
        self.layers = {name: type(layer) for name, layer in trainer.lightning_module.named_modules()}
        self.structure = _structure(trainer.lightning_module)

    def _fingerprints(self) -> dict[Key, dict[str, Any]]:
        return {
            key: {name: self.shared.fingerprint(value) for name, value in state_of(shared).items()}
            for key, shared in self.shared.objects.items()
        }

    def _names(self) -> dict[Key, frozenset[str]]:
        return {key: frozenset(state_of(shared)) for key, shared in self.shared.objects.items()}

    def _with_attributes(self) -> Iterator[tuple[Key, Any]]:
        return ((key, shared) for key, shared in self.shared.objects.items() if has_own_attributes(shared))

    def _new_code(self) -> Iterator[tuple[Key, str, Any]]:
        """Yield functions and classes of the user's own that the run has set where there was nothing, or a value."""
        for key, shared in self._with_attributes():
            for name, value in attributes(shared).items():
                was_code = name in self.all_names[key] and name not in self.names[key]
                new = not was_code and name not in _internals(shared)
                # A bound method is what Lightning leaves behind that has called `forward` by another name.
                if new and _is_own_code(value) and not isinstance(value, (MethodType, BuiltinFunctionType)):
                    yield key, name, value

    def _layers_without_tensors(self, metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
        """Return new or replaced layers that have no tensors, such as losses and metrics, by their name."""
        layers: dict[str, bytes] = {}
        for name, layer in self.trainer.lightning_module.named_modules():
            known = self.layers.get(name) is type(layer) or any(name.startswith(f"{other}.") for other in layers)
            if known or named_tensors(layer):
                continue
            for part_name, part in layer.named_modules(prefix=name):
                vars(part).update(metrics.get(part_name, {}))  # this worker ends; its own share is not asked for
            if (data := self.shared.dumps(layer)) is not None:
                layers[name] = data
        return layers

    def _callbacks(self) -> list[Any] | None:
        """Return the trainer's callbacks if they are others than before: keys, or class and attributes of new ones."""
        callbacks = lightning_trainer.callbacks(self.trainer)
        keys = [self.shared.keys.get(id(callback)) for callback in callbacks]
        if keys == [key for key in self.shared.objects if key[0] == "callback"]:
            return None
        return [
            key
            or (type(callback), {name: self.shared.dumps(value) for name, value in own_attributes(callback).items()})
            for key, callback in zip(keys, callbacks, strict=True)
        ]

    def _optimizers(self) -> bytes | None:
        """Pickle the optimizers and schedulers of a fit, but for the optimizers' states, which come beside the trace.

        None for those of frameworks, and for those whose parameters the caller has not.
        """
        optimizers = self.trainer.optimizers
        parameters = [one for optimizer in optimizers for group in optimizer.param_groups for one in group["params"]]
        if any(type(one).__module__.partition(".")[0] in ("deepspeed", "horovod") for one in optimizers) or not all(
            id(one) in self.shared.keys for one in parameters
        ):
            return None
        for optimizer in optimizers:
            optimizer.state = defaultdict(dict)  # this worker ends
        return self.shared.dumps((optimizers, self.trainer.lr_scheduler_configs))

    def trace(self, metrics: Mapping[str, Mapping[str, Any]], finished: bool = True) -> bytes:
        """Pickle all that the run changed since this observer was created.

        Args:
            metrics: the states of the module's metrics over all workers, by the metric's name in the module.
            finished: whether the run has ended well.
        """
        trainer, module = self.trainer, self.trainer.lightning_module
        for path, other in self.shared.modules.items():
            if _structure(other) != self.structures[path]:
                self.shared.forget(path)
        changed: dict[Key, dict[str, bytes]] = {}
        for key, shared in self.shared.objects.items():
            before = self.fingerprints[key]
            overall = metrics.get(key[1], {}) if key[0] == "module" else {}
            for name, value in {**state_of(shared), **overall}.items():
                now = self.shared.fingerprint(value)
                if (now is None or now != before.get(name)) and (data := self.shared.dumps(value)) is not None:
                    changed.setdefault(key, {})[name] = data
        for key, name, value in self._new_code():
            if (data := self.shared.dumps(value)) is not None:
                changed.setdefault(key, {})[name] = data
        # Layers that were added or replaced during the run have no counterpart on the caller: send the whole tree.
        tensors = {name: tensor.detach() for name, tensor in named_tensors(module).items()}
        same_structure = _structure(module) == self.structure
        trace = {
            "state": trainer.state,
            "should_stop": trainer.should_stop,
            "metrics": lightning_trainer.read_metrics(trainer),
            "loops": lightning_trainer.read_loops(trainer),
            "attributes": changed,
            "callbacks": self._callbacks(),
            # None in the place of a layer that configure_model makes would hide the layer.
            "removed": {
                key: self.names[key] - (names | attributes(self.shared.objects[key]).keys())
                for key, names in self._names().items()
            },
            "tensors": tensors,
            "held": {
                key: tensor.detach()
                for key, tensor in self.shared.held.items()
                if self.shared.fingerprint(tensor.detach()) != self.held[key]
                and tensor.numel() * tensor.element_size() <= _SENT_BYTES
            },
            "tree": None if same_structure else {name: vars(module)[name] for name in _TREE},
            "layers": self._layers_without_tensors(metrics) if same_structure else {},
            "optimizers": self._optimizers() if finished and same_structure else None,
            "requires_grad": {name: parameter.requires_grad for name, parameter in module.named_parameters()},
        }
        try:
            return self._pickled(trace)
        except Exception as error:  # any attribute of a layer: the weights have to come back all the same
            if trace["tree"] is None:
                raise
            warn_user(
                f"Layers created during the run cannot be sent back: {error}. Weights of existing layers are copied; "
                "for the new ones, save a checkpoint in the run."
            )
            return self._pickled({**trace, "tree": None})

    def _pickled(self, trace: dict[str, Any]) -> bytes:
        buffer = io.BytesIO()
        # Tensors go by value here: their values are what this is about.
        _Pickler(buffer, {i: key for i, key in self.shared.keys.items() if key[0] in ("trainer", "strategy")}).dump(
            trace
        )
        return buffer.getvalue()


def write_back(data: bytes, trainer: Trainer, arguments: tuple[Any, ...]) -> None:
    """Write a trace from `StateDiff.trace` into the caller's objects."""
    shared = Shared(trainer, arguments)
    trace = shared.loads(data)
    module = trainer.lightning_module
    trainer.state = trace["state"]
    trainer.should_stop = trace["should_stop"]
    lightning_trainer.write_loops(trainer, trace["loops"])
    lightning_trainer.write_metrics(trainer, trace["metrics"])
    if trace["tree"] is not None:
        vars(module).update(trace["tree"])
    else:
        for name, tensor in named_tensors(module).items():
            if name in trace["tensors"] and trace["tensors"][name].shape == tensor.shape:
                tensor.detach().copy_(trace["tensors"][name])
    for key, tensor in trace["held"].items():
        if (own := shared.held.get(key)) is not None and own.shape == tensor.shape:
            own.detach().copy_(tensor)
    for name, layer in trace["layers"].items():
        parent, _, child = name.rpartition(".")
        module.get_submodule(parent)._modules[child] = shared.loads(layer)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trace["requires_grad"].get(name, parameter.requires_grad))
    for key, names in trace["removed"].items():
        for name in names if key in shared.objects else ():
            remove_attribute(shared.objects[key], name)
    for key, changed in trace["attributes"].items():
        if key not in shared.objects:
            log.debug("%s is not written back, it is not there on the caller", key)
            continue
        _write_attributes(shared, shared.objects[key], changed)
    if trace["optimizers"] is not None:
        trainer.strategy.optimizers, trainer.strategy.lr_scheduler_configs = shared.loads(trace["optimizers"])
    if trace["callbacks"] is not None:
        lightning_trainer.set_callbacks(trainer, [_callback(shared, state) for state in trace["callbacks"]])


def _write_attributes(shared: Shared, target: Any, changed: dict[str, bytes | None]) -> None:
    for name, value in changed.items():
        if value is None:
            continue
        try:
            loaded = shared.loads(value)
        except Exception as error:  # tqdm's bars, for example, can be pickled and not be made again
            log.debug("%s of %s is not written back, it cannot be recreated here: %s", name, target, error)
            continue
        if name == CONTENTS:
            restore(target, loaded)
        else:
            set_attribute(target, name, loaded)


def _callback(shared: Shared, state: Any) -> Any:
    """Return a callback that the run has ended with: one of the caller's, or a new one with what was sent of it."""
    kind, rest = state
    if isinstance(kind, str):  # a key
        return shared.objects[kind, rest]
    callback = kind.__new__(kind)
    _write_attributes(shared, callback, rest)
    return callback


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters and buffers by name, buffers outside its state dict included."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


_TREE = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


def _structure(module: nn.Module) -> dict[str, Any]:
    return {
        name: (None if is_lazy(tensor) else tuple(tensor.shape), tensor.dtype)
        for name, tensor in named_tensors(module).items()
    }


def state_of(shared: Any) -> dict[str, Any]:
    """Return the state of a shared object: its attributes, and its contents under a name that no attribute has."""
    inside = contents(shared)
    if inside is None:
        return own_attributes(shared)
    # Generators have attributes too, which are in their state already.
    return {CONTENTS: inside, **(own_attributes(shared) if isinstance(shared, Container) else {})}


def own_attributes(shared: Any) -> dict[str, Any]:
    """Return the attributes of a shared object that its owner, not a framework, keeps on it."""
    if isinstance(shared, Metric):
        return compat_torchmetrics.metric_state(shared)
    if isinstance(shared, Trainer):
        return {n: value for n, value in lightning_trainer.attributes(shared).items() if not _is_own_code(value)}
    if not has_own_attributes(shared):
        return {}
    internals = _internals(shared)
    return {
        name: value for name, value in attributes(shared).items() if name not in internals and not _is_own_code(value)
    }


def has_own_attributes(shared: Any) -> bool:
    """Return whether an object has attributes that are sent one by one."""
    return (
        (hasattr(shared, "__dict__") or is_own_object(shared))
        and not isinstance(shared, (Metric, Tensor))
        and not isinstance(shared, (Trainer, Strategy))
    )


def _internals(shared: Any) -> frozenset[str]:
    return (
        lightning_trainer.module_internals()
        if isinstance(shared, nn.Module)
        else lightning_logging.live_attributes(shared)
    )


def _is_own_code(value: Any) -> bool:
    """Return whether a value is code that cannot be imported: it would come back as a copy, with copies of globals."""
    if isinstance(value, functools.partial):
        return _is_own_code(value.func)
    if isinstance(value, BuiltinFunctionType):
        return not (value.__self__ is None or isinstance(value.__self__, ModuleType))
    if isinstance(value, FunctionType | type):
        return value.__module__ in (None, "__main__") or "<" in value.__qualname__  # <locals>, <lambda>
    return isinstance(value, MethodType)


class _TooLargeError(Exception):
    """More was pickled than is wanted."""


class _Limited:
    """A file in memory, up to a size."""

    def __init__(self, limit: int) -> None:
        self.buffer = io.BytesIO()
        self.left = limit

    def write(self, data: Any) -> int:
        self.left -= memoryview(data).nbytes  # large arrays come as buffers without a length
        if self.left < 0:
            raise _TooLargeError
        return self.buffer.write(data)


class _Hash(_Limited):
    """A file of which only a hash is kept."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.digest = hashlib.blake2b(digest_size=16)

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.left -= size
        if self.left < 0:
            raise _TooLargeError
        self.digest.update(data)
        return size


class _Pickler(cloudpickle.Pickler):
    def __init__(self, file: Any, keys: dict[int, Key]) -> None:
        super().__init__(file)
        self.shared_keys = keys

    def persistent_id(self, obj: Any) -> tuple[str, str] | None:
        if isinstance(obj, type):
            # A class that came by value must come back as the caller's own class, not as a copy of it.
            class_id = compat_cloudpickle.dynamic_class_id(obj)
            return None if class_id is None else ("class", class_id)
        return self.shared_keys.get(id(obj))

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor) and obj.device.type != "cpu":
            return _itself, (obj.detach().cpu(),)  # the caller may have no such device
        return super().reducer_override(obj)


class _ComparingPickler(_Pickler):
    """Replaces large tensors and arrays by what shows whether they have changed."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor) and obj.numel() * obj.element_size() >= _LARGE:
            return _itself, (("tensor", obj.data_ptr(), compat_torch.version_of(obj), tuple(obj.shape)),)
        if type(obj) is np.ndarray and obj.nbytes >= _LARGE and obj.dtype != object:
            # Of all values, unless it is too large to be sent anyway.
            values = obj if obj.nbytes <= _SENT_BYTES else obj.reshape(-1)[:: obj.size // 65536]
            return _itself, (("array", obj.shape, zlib.crc32(np.ascontiguousarray(values).data)),)
        return super().reducer_override(obj)


def _itself(value: Any) -> Any:
    return value


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, objects: dict[Key, Any]) -> None:
        super().__init__(file)
        self.objects = objects

    def persistent_load(self, key: tuple[str, str]) -> Any:
        kind, name = key
        return compat_cloudpickle.dynamic_class(name) if kind == "class" else self.objects[key]
