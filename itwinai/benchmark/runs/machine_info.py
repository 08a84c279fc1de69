"""What machine and which code a benchmark was run with."""

from __future__ import annotations

import hashlib
import platform
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from itwinai.run_info.git import code_in
from itwinai.run_info.run import command_line, time_now, versions


def machine_facts() -> dict[str, str]:
    """Return facts about this machine and the code in the current folder, for people."""
    import psutil

    facts = {
        "host": socket.gethostname(),
        "processor": _processor(),
        "cores": f"{psutil.cpu_count(logical=False) or '?'} ({psutil.cpu_count()} logical)",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": platform.platform(terse=True),
        "begun": time_now(),
        "command": command_line(),
    }
    if (code := code_in(Path.cwd())) is not None:
        facts["commit"] = code.commit + (" (with changes)" if code.dirty else "")
    return facts | versions()


def code_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return digests of the files in the current folder that define the classes of a config, by their names."""
    digests = {}
    for class_path in _class_paths(config):
        module = sys.modules.get(class_path.rpartition(".")[0])
        source = Path(getattr(module, "__file__", None) or "")
        if source.is_file() and source.is_relative_to(Path.cwd()) and "site-packages" not in source.parts:
            name = str(source.relative_to(Path.cwd()))
            digests[name] = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    return digests


def _class_paths(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(node.get("class_path"), str):
            yield node["class_path"]
        node = list(node.values())
    if isinstance(node, list):
        for one in node:
            yield from _class_paths(one)


def _processor() -> str:
    """Return the name of the processor: Linux has a better one than Python."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
