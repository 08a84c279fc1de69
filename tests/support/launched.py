"""A script that trains, evaluates and tells what it has: ``launched.py KIND OUT``, KIND that of its workers.

It makes what cannot be sent, unless KIND is ``payload``; calls the trainer three times; and has one result that a
second run of it would not give, so that a test sees who has run it how often.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from itwinai import ItwinaiTrainer
from tests.support.cases import Regression

kind, out = sys.argv[1], Path(sys.argv[2])
seen: list[int] = []
with (out.parent / "runs").open("a") as file:
    file.write("run\n")


class Recorder:
    """Shared by the script and the module."""

    def __init__(self) -> None:
        self.losses: list[float] = []


class Note:
    """What a worker makes of a class of the script."""


class RefusedError(Exception):
    """Raised in a worker, and caught by the script."""


class Module(Regression):
    note: Note | None = None

    def __init__(self, recorder: Recorder) -> None:
        super().__init__("adamw")
        self.recorder = recorder
        self.seen = seen
        self.mean = MeanMetric()
        if kind != "payload":
            self.net[0] = nn.utils.parametrizations.weight_norm(self.net[0])
            self.lock = threading.Lock()
        self.net[2].weight.register_hook(lambda gradient: gradient * 0.5)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.recorder.losses.append(float(loss.detach()))
        self.seen.append(batch_idx)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.trainer.state.fn == "validate":
            raise RefusedError
        super().validation_step(batch, batch_idx)

    def on_test_start(self) -> None:
        self.note = Note()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.mean.update(batch[0].mean(dim=1))


def main() -> None:
    torch.manual_seed(7)
    x = torch.randn(24, 8)
    data = TensorDataset(x, x.sum(dim=1, keepdim=True))
    generator = torch.Generator().manual_seed(5)
    recorder = Recorder()
    module = Module(recorder)

    def loader(**options: Any) -> DataLoader:
        return DataLoader(data, 8 if kind == "single" else 4, **options)

    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    workers: dict[str, Any] = (
        {"devices": 1} if kind == "single" else {"devices": 2, "strategy": "ddp", "launcher": kind}
    )
    trainer = ItwinaiTrainer(accelerator="cpu", max_epochs=2, enable_checkpointing=False, **quiet, **workers)
    training = loader(shuffle=True, generator=generator)
    trainer.fit(module, training, loader())
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, training, loader())
    trainer.test(module, loader(), verbose=False)
    trainer.save_checkpoint(out.with_suffix(".ckpt"))
    told = {
        "weights": [tensor.flatten().tolist() for tensor in module.state_dict().values()],
        "batches": seen,
        "losses": len(recorder.losses),
        "mean": float(module.mean.compute()),
        "step": trainer.global_step,
        "val_loss": float(trainer.callback_metrics["val_loss"]) if "val_loss" in trainer.callback_metrics else None,
        "drawn": torch.rand(2).tolist(),
        "generator": int(torch.randint(10**6, (1,), generator=generator)),
        "moments": len(torch.load(out.with_suffix(".ckpt"), weights_only=False)["optimizer_states"][0]["state"]),
    }
    told["class"] = isinstance(module.note, Note)
    try:
        trainer.validate(module, loader(), verbose=False)
    except RefusedError:
        told["caught"] = True
    out.write_text(json.dumps(told))


main()
