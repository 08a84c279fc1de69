"""Does DeepSpeed compute the same on a GPU, in every stage, with offload, its own optimizers, and its checkpoints?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from tests.gpu.check import Bench, Check, furthest
from tests.gpu.models import Regression, points
from tests.gpu.training import QUIET, fit

STAGES = (1, 2, 3)


def _strategy(bench: Bench, **options: Any) -> Any:
    if bench.dry:
        os.environ["DS_ACCELERATOR"] = "cpu"  # it chooses when it is imported
    from itwinai.strategies import DeepSpeedStrategy

    return DeepSpeedStrategy(**options)


def stages(bench: Bench, tolerance: float = 1e-4) -> None:
    """Compare all stages with one process: fp32 with clipping and accumulation, and in bf16."""
    variant: dict[str, Any] = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}
    alone = fit(bench, **variant)
    half = fit(bench, precision="bf16-mixed")
    for stage in STAGES:
        run = fit(bench, strategy=_strategy(bench, stage=stage), **variant)
        bench.expect(f"weights, stage {stage}", furthest(run.weights, alone.weights), at_most=tolerance)
        run = fit(bench, strategy=_strategy(bench, stage=stage), precision="bf16-mixed")
        bench.expect(f"weights, stage {stage}, bf16", furthest(run.weights, half.weights), at_most=0.05)
    if bench.cuda:  # its own scaler of gradients
        run = fit(bench, strategy=_strategy(bench, stage=2), precision="16-mixed")
        bench.expect("weights, stage 2, fp16", furthest(run.weights, alone.weights), at_most=0.2)


def offload(bench: Bench) -> None:
    """Compare with one process while host memory holds the optimizer's state, and the parameters."""
    alone = fit(bench)
    kinds: dict[str, dict[str, Any]] = {
        "optimizer": {"stage": 2, "offload_optimizer": True},
        "parameters": {"stage": 3, "offload_optimizer": True, "offload_parameters": True},
    }
    if bench.dry:  # the host's memory is the device's
        kinds.popitem()
    for name, options in kinds.items():
        run = fit(bench, strategy=_strategy(bench, **options))
        bench.expect(f"weights, {name}", furthest(run.weights, alone.weights), at_most=1e-4)


def fused_adam(bench: Bench) -> None:
    """Build DeepSpeed's fused Adam, and compare it with torch's."""
    if bench.dry:
        bench.record("on the CPU", "there is no fused Adam to build")
        return

    class Fused(Regression):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            from deepspeed.ops.adam import FusedAdam

            return FusedAdam(self.parameters(), lr=self.lr, eps=1e-4, adam_w_mode=True, weight_decay=0.01)

    alone = fit(bench)
    run = fit(bench, Fused(), strategy=_strategy(bench, stage=2))
    bench.expect("weights", furthest(run.weights, alone.weights), at_most=1e-3)


def sharded(bench: Bench) -> None:
    """Write folders of shards from the device, in the background and not, and go on from them under each strategy."""
    from itwinai import ItwinaiTrainer
    from itwinai.callbacks import ModelCheckpoint

    whole = fit(bench, max_epochs=4)
    for background in (True, False):
        folder = bench.folder / f"background-{background}"
        callback = ModelCheckpoint(folder, filename="half", every="2epochs", background=background, save_top_k=-1)
        trainer = ItwinaiTrainer(
            accelerator=bench.accelerator,
            devices=1,
            max_epochs=2,
            strategy=_strategy(bench, stage=3, sharded_checkpoints=True),
            callbacks=[callback],
            **{**QUIET, "enable_checkpointing": True},
        )
        trainer.fit(Regression(), points())
        path = next(Path(folder).iterdir())
        bench.expect("is a folder", str(path.is_dir()), equal="True")
        for name, strategy in {"stage 3": _strategy(bench, stage=3), "one process": "auto"}.items():
            module = Regression()
            more = ItwinaiTrainer(accelerator=bench.accelerator, devices=1, max_epochs=4, strategy=strategy, **QUIET)
            more.fit(module, points(), ckpt_path=str(path))
            ours = [parameter.detach().cpu() for parameter in module.parameters()]
            bench.expect(f"{name}, background={background}", furthest(ours, whole.weights), at_most=1e-4)


NEEDS = ("deepspeed",)
CHECKS = (
    Check("deepspeed", "deepspeed", "stages 1 to 3", stages, 8, 90, NEEDS),
    Check("deepspeed-offload", "deepspeed", "optimizer and parameters in host memory", offload, 16, 60, NEEDS),
    Check("deepspeed-adam", "deepspeed", "its fused Adam, built here", fused_adam, 31, 120, NEEDS),
    Check("deepspeed-sharded", "deepspeed", "checkpoints as folders of shards", sharded, 15, 60, NEEDS),
)
