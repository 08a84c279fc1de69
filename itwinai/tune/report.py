"""The page that a search leaves."""

from __future__ import annotations

import os
from pathlib import Path

from itwinai.io.atomic import write_whole
from itwinai.reporting.formatting import count_text, origin
from itwinai.reporting.html import page
from itwinai.reporting.search.sections import search_sections
from itwinai.trials.records import SearchRecord
from itwinai.tune.importance import importances
from itwinai.tune.settings import Settings


def write_report(record: SearchRecord, path: str | os.PathLike[str], best_config: str = "") -> None:
    """Write what a search has found as one HTML page that needs no network; a file of that name is replaced as a whole.

    Args:
        record: the search.
        path: of the page; its folder is created if it does not exist.
        best_config: the configuration of the best trial, as YAML without secrets.

    Raises:
        MissingPackageError: matplotlib is not installed.
        OSError: it could not be written; the old page is still there.
    """
    found = [importances(record, objective) for objective in record.objectives]
    sections = search_sections(record, found, best_config)
    settings = record.settings
    about = origin(
        "" if record.name == Settings.name else f"search {record.name}",
        f"strategy {strategy}" if (strategy := settings.get("strategy")) else "",
        f"{count_text(int(workers), 'worker')} per trial" if (workers := settings.get("workers per trial")) else "",
        begun=settings.get("begun", ""),
        command=settings.get("command", ""),
        version=settings.get("itwinai", ""),
    )
    of = f" of {model}" if (model := settings.get("model")) else ""
    write_whole(Path(path), page(f"Hyperparameter search{of}", sections, about=about))
