"""The torch that Horovod is built against."""

from __future__ import annotations

import runpy
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from itwinai.errors import InstallError


@dataclass(frozen=True)
class TorchInfo:
    """The torch to build against."""

    version: str
    cuda: str | None = None
    hip: str | None = None

    @property
    def flavour(self) -> str:
        """Return ``cpu``, ``cu130`` or ``rocm63``."""
        if self.cuda:
            return "cu" + self.cuda.replace(".", "")
        if self.hip:
            return "rocm" + "".join(self.hip.split(".")[:2])
        return "cpu"


def find_torch() -> TorchInfo:
    """Find the installed torch without importing it, which would take seconds.

    Returns:
        Its version, local part included, and the CUDA or ROCm it was built for.

    Raises:
        InstallError: torch is not installed.
    """
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise InstallError(
            f"PyTorch is not installed in {sys.prefix}, and Horovod is built against it.\n"
            "  Install torch first (pip install torch), then run this command again."
        )
    names = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return TorchInfo(str(names["__version__"]), names.get("cuda"), names.get("hip"))
