"""Training on a store that is many times larger than memory may grow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import small_store
from huge_store import write_huge_store

SCRIPT = """
import json, resource, sys
import lightning as L
from itwinai import ItwinaiTrainer
from itwinai_drought.data.datamodule import DroughtDataModule
from itwinai_drought.model import DroughtLSTM

store, devices, epochs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
memory = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Memory(L.Callback):
    def on_train_end(self, trainer, module):
        from itwinai.collectives import gather
        peaks = gather(trainer, memory())
        if trainer.is_global_zero:
            print(json.dumps({"peak": peaks, "steps": trainer.global_step}), flush=True)


data = DroughtDataModule(
    store=store, days=365, warm_up=180, block=20, buffer=0, batch_size=16, cell_fraction=float(sys.argv[4]),
    window_fraction=0.001, mixed=4, cache_mb=64, statistics_blocks=8,
)
data.setup("fit")
module = DroughtLSTM(hidden=8, cells=int(data.valid.size))
trainer = ItwinaiTrainer(
    strategy="ddp", devices=devices, accelerator="cpu", max_epochs=epochs, limit_train_batches=int(sys.argv[5]),
    limit_val_batches=2, num_sanity_val_steps=0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False, callbacks=[Memory()], cpu_threads=1,
)
trainer.fit(module, datamodule=data)
"""


def measure(store: Path, *arguments: object) -> dict[str, Any]:
    """Train in a process of its own, and return the peak memory of each worker in MB, and the number of steps."""
    command = [sys.executable, "-c", SCRIPT, str(store), *map(str, arguments)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(next(line for line in output.splitlines() if line.startswith("{")))


def test_memory_depends_on_the_cache_and_not_on_the_store(tmp_path: Path) -> None:
    tile = Path(small_store.write(small_store.make_dataset(2190, 20, 20), tmp_path / "tile.zarr", (365, 20, 20)))
    size = write_huge_store(tile, tmp_path / "huge.zarr", (12, 12))
    assert size > 3e9
    found = measure(tmp_path / "huge.zarr", 2, 2, 0.02, 6)
    assert found["steps"] == 12
    assert len(found["peak"]) == 2
    assert max(found["peak"]) < 1200  # MB, of which imports take 400 and blocks of the store 32
