"""Workers that take long to start: ``slow_start.py FOLDER LAUNCHER``. Each leaves its process id in the folder."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from tests.support.cases import Regression, loader, make_trainer

folder, launcher = Path(sys.argv[1]), sys.argv[2]


class Slow(Regression):
    def __setstate__(self, state: dict[str, Any]) -> None:  # where the module is sent
        self.__dict__.update(state)
        self.wait()

    def setup(self, stage: str) -> None:  # where it is copied with the process
        self.wait()

    def wait(self) -> None:
        (folder / f"{os.environ['RANK']}.part").write_text(str(os.getpid()))
        (folder / f"{os.environ['RANK']}.part").rename(folder / f"{os.environ['RANK']}.pid")
        time.sleep(3600)


make_trainer("ddp", 2, max_epochs=1, launcher=launcher).fit(Slow(), loader(4))
