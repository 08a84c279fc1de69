"""Workers that take long before they train: ``slow_start.py FOLDER``. Each leaves its process id in the folder."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from tests.support.cases import Regression, loader, make_trainer

folder = Path(sys.argv[1])


class Slow(Regression):
    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        (folder / f"{os.environ['RANK']}.part").write_text(str(os.getpid()))
        (folder / f"{os.environ['RANK']}.part").rename(folder / f"{os.environ['RANK']}.pid")
        time.sleep(3600)


make_trainer("ddp", 2, max_epochs=1).fit(Slow(), loader(4))
