"""Which part of the data decides what a batch holds, and where it is written."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from itwinai.checks.source_lines import class_line, method_line
from itwinai.checks.subject import Built, Subject


def is_iterable(subject: Subject) -> bool:
    """Return whether the training data is an iterable dataset, which no sampler can deal out."""
    return isinstance(getattr(_training_loader(subject.build()), "dataset", None), IterableDataset)


def source_of_batches(subject: Subject) -> tuple[str, str]:
    """Return what draws the samples, and its line: the user's sampler, the dataset, or what makes the loader."""
    built = subject.build()
    loader = _training_loader(built)
    found: list[Any] = []
    for start in (getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None)):
        while start is not None and start not in found:
            found.append(start)
            start = getattr(start, "sampler", None)
    for one in reversed(found):
        if at := method_line(type(one), "__iter__"):
            return f"the sampler {type(one).__name__}", at
    if any(getattr(one, "generator", None) is not None for one in found):
        return "the loader's generator", _loader_line(built)
    dataset: Any = getattr(loader, "dataset", None)
    while dataset is not None and not class_line(type(dataset)) and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    for method in ("__getitem__", "__getitems__", "__iter__"):
        if dataset is not None and (at := method_line(type(dataset), method)):
            return f"the dataset {type(dataset).__name__}", at
    return "what makes the loader", _loader_line(built)


def _training_loader(built: Built) -> DataLoader | Any:
    if isinstance(built.data, tuple):
        return built.data[0]
    if built.datamodule is not None:
        built.datamodule.prepare_data()
        built.datamodule.setup("fit")
        return built.datamodule.train_dataloader()
    return built.module.train_dataloader()


def _loader_line(built: Built) -> str:
    owner = built.datamodule or built.module
    return method_line(type(owner), "train_dataloader")
