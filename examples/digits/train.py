"""Train the digits classifier from a plain script: python train.py --strategy ddp --devices 2."""

from __future__ import annotations

import argparse

import lightning as L
from data import DigitsDataModule
from model import DigitsClassifier

from itwinai import ItwinaiTrainer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--strategy", default="auto")
parser.add_argument("--devices", default="auto", help="number of workers")
args = parser.parse_args()

L.seed_everything(42)
model = DigitsClassifier()
data = DigitsDataModule(batch_size=64)

trainer = ItwinaiTrainer(
    strategy=args.strategy,
    devices=args.devices,
    split_batches=True,  # 64 samples per step, whatever the number of workers
    max_epochs=10,
    logger=False,
    default_root_dir="runs",
)
trainer.fit(model, data)
trainer.test(model, data)
if trainer.is_global_zero:  # under torchrun and the like every worker comes here
    print(f"test accuracy: {float(trainer.callback_metrics['test_accuracy']):.3f}")
