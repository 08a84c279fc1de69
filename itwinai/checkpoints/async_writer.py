"""Write checkpoints in a thread, from a copy in host memory, during training."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


class Snapshot:
    """A copy of a checkpoint's content in host memory, whose memory the next one uses again.

    Fresh memory costs more than the copy itself: the system has to clear every page of it.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], Tensor] = {}

    def copy(self, content: Any) -> Any:
        """Return a copy of nested containers, with every tensor copied, shared ones once.

        Args:
            content: dictionaries, lists and tuples of tensors and other values; the latter are not copied.
        """
        used: dict[tuple[Any, ...], Tensor] = {}
        copies: dict[tuple[Any, ...], Tensor] = {}
        taken = self._copy(content, (), used, copies)
        for device in {key[-1] for key in copies if key[-1].type == "cuda"}:
            torch.cuda.synchronize(device)  # copies from the GPU have only been started
        self._buffers = used
        return taken

    def _copy(
        self, value: Any, place: tuple[Any, ...], used: dict[tuple[Any, ...], Tensor], copies: dict[Any, Tensor]
    ) -> Any:
        if isinstance(value, Tensor):
            value = value.detach()
            identity = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
            if value.numel() == 0 or identity not in copies:
                buffer = self._buffers.get(place)
                if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
                    buffer = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
                copies[identity] = used[place] = buffer.copy_(value, non_blocking=value.is_cuda)
            return copies[identity]
        if isinstance(value, dict):
            copied = {key: self._copy(item, (*place, key), used, copies) for key, item in value.items()}
            return copied if type(value) is dict else _like(value, copied)
        if type(value) in (list, tuple):
            return type(value)(self._copy(item, (*place, index), used, copies) for index, item in enumerate(value))
        return value


def _like(original: dict[Any, Any], items: dict[Any, Any]) -> dict[Any, Any]:
    """Return a dictionary of the class of another one, as an OrderedDict, or a state dict with its metadata."""
    result = original.copy()
    result.update(items)
    return result


class BackgroundWriter:
    """Runs file operations in a thread, one after the other, in the order in which they were asked for.

    At most one snapshot is on its way: to ask for the next write waits for the one before.
    """

    def __init__(self) -> None:
        self._snapshot = Snapshot()
        self._executor: ThreadPoolExecutor | None = None
        self._pending: list[Future[None]] = []
        self._lock = threading.Lock()
        self._failed: list[tuple[str, BaseException]] = []
        self._broken = False

    def write(self, content: dict[str, Any], path: str, write: Callable[[dict[str, Any], str], None]) -> None:
        """Take a snapshot and write it in the background.

        Args:
            content: of the checkpoint.
            path: of the file.
            write: does it; what it raises is kept for `pop_failures`.
        """
        self.wait()
        snapshot = self._snapshot.copy(content)

        self._submit(lambda: self.write_now(snapshot, path, write))

    def write_now(self, content: dict[str, Any], path: str, write: Callable[[dict[str, Any], str], None]) -> None:
        """Write without a snapshot; what is raised is kept for `pop_failures`."""
        try:
            write(content, path)
            self._broken = False
        except Exception as error:  # any error is raised by the next call that checks
            self._broken = True
            with self._lock:
                self._failed.append((path, error))

    def remove(self, path: str, remove: Callable[[str], None]) -> None:
        """Remove a file once all before it is done, unless the last write has failed: then it may be the best left."""

        def run() -> None:
            if not self._broken:
                remove(path)

        self._submit(run)

    def wait(self) -> None:
        """Wait until everything is done."""
        while self._pending:
            self._pending.pop(0).result()

    def pop_failures(self) -> list[tuple[str, BaseException]]:
        """Return the paths that could not be written since the last call, each with what was raised."""
        with self._lock:
            failed, self._failed = self._failed, []
        return failed

    def close(self) -> None:
        """Wait until everything is done, and end the thread."""
        self.wait()
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # a new process has written nothing

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def _submit(self, run: Callable[[], None]) -> None:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="itwinai-checkpoint")
        self._pending.append(self._executor.submit(run))
