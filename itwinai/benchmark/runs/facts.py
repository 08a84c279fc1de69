"""What machine and which code a benchmark was run with."""

from __future__ import annotations

import platform
import socket
from datetime import datetime
from pathlib import Path

from itwinai.facts.code import code_in
from itwinai.facts.run import versions


def machine_facts() -> dict[str, str]:
    """Return facts about this machine and the code in the current folder, for people."""
    import psutil

    facts = {
        "host": socket.gethostname(),
        "processor": _processor(),
        "cores": f"{psutil.cpu_count(logical=False) or '?'} ({psutil.cpu_count()} logical)",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": platform.platform(terse=True),
        "begun": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    if (code := code_in(Path.cwd())) is not None:
        facts["commit"] = code.commit + (" (with changes)" if code.dirty else "")
    return facts | versions()


def _processor() -> str:
    """Return the name of the processor: that of Linux is more telling than what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
