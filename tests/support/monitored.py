"""One worker of a monitored run on several nodes: ``monitored.py FOLDER``, ranks in the environment."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger

from itwinai.callbacks.system_monitor import SystemMonitor
from tests.callbacks.test_system_monitor import Busy
from tests.support.cases import loader, make_trainer

folder = Path(sys.argv[1])
monitor = SystemMonitor(interval=0.05)
logger = CSVLogger(folder, name="", version="")
trainer = make_trainer("ddp", 1, num_nodes=2, callbacks=[monitor], logger=logger, max_epochs=2, log_every_n_steps=2)
trainer.fit(Busy(), loader(8))
if trainer.is_global_zero:
    (folder / "summary").write_bytes(pickle.dumps(monitor.summary))
