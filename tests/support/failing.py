"""A script whose run fails in a way that its arguments choose: ``failing.py STRATEGY HOW [RANK]``.

``failing.py STRATEGY wait FOLDER`` does not fail, but waits at step 3 for being interrupted or killed; every rank
leaves a file in the folder when it is there. ``FAILED_AT`` names a file for the time at which it fails.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch

from tests.support.cases import Regression, loader, make_trainer

strategy, how = sys.argv[1], sys.argv[2]
rank = int(sys.argv[3]) if len(sys.argv) > 3 and how != "wait" else 1


class Failing(Regression):
    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        if batch_idx < 3:
            return
        if self.global_rank == rank:
            if "FAILED_AT" in os.environ:
                Path(os.environ["FAILED_AT"]).write_text(str(time.monotonic()))
            if how == "exception":
                raise ArithmeticError("the loss of step 3 exploded")
            if how == "sigkill":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "exit":
                os._exit(3)
            if how == "unpicklable":
                raise type("Odd", (Exception,), {"__reduce__": lambda self: (open, ("/nowhere",))})("odd one")
        if how == "wait" and batch_idx == 3:
            Path(sys.argv[3], str(self.global_rank)).touch()
            time.sleep(600)  # stands for a long step; the test interrupts it


torch.manual_seed(0)
make_trainer(strategy, 2, max_epochs=2).fit(Failing(), loader(4, shuffle=True))
print("this line is not reached")
