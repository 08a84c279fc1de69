"""Is what a GPU computes right? Against the CPU, against loops written by hand, and among strategies."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from lightning import seed_everything

from tests.gpu.check import Bench, Check, furthest
from tests.gpu.models import Regression
from tests.gpu.training import Trained, fit, fit_by_hand, two_workers

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"accumulate": 4},  # which does not divide the 6 batches of an epoch
    "clipped": {"clip": 0.1},
}


def trainer_arguments(accumulate: int = 1, clip: float | None = None) -> dict[str, Any]:
    """Return a variant in the trainer's words."""
    return {"accumulate_grad_batches": accumulate, "gradient_clip_val": clip}


def single(bench: Bench, reference: Callable[..., Trained] = fit_by_hand) -> None:
    """Compare one process on the device with a loop by hand on the CPU, in fp32."""
    torch.set_float32_matmul_precision("highest")
    for name, variant in VARIANTS.items():
        ours = fit(bench, **trainer_arguments(**variant))
        theirs = reference(torch.device("cpu"), **variant)
        if name == "accumulated":  # lightning divides the last, partial window by the whole of one too
            bench.record("partial window", "divided by accumulate_grad_batches, as by hand")
        bench.expect(f"weights, {name}", furthest(ours.weights, theirs.weights), at_most=1e-4)
        bench.expect(f"loss, {name}", ours.loss, equal=theirs.loss, within=1e-4 * theirs.loss)


def ddp_alone(bench: Bench) -> None:
    """Compare DDP with one worker, over NCCL on a GPU, with one process."""
    alone, ddp = fit(bench), fit(bench, strategy="ddp")
    bench.expect("weights", furthest(ddp.weights, alone.weights), at_most=1e-6)


def ddp_two(bench: Bench, tolerance: float = 1e-5) -> None:
    """Compare two workers on one device, over gloo, with one process."""
    for name, variant in VARIANTS.items():  # the workers first: they are forked off a process without CUDA
        arguments = trainer_arguments(**variant)
        two = fit(bench, strategy=two_workers(bench), devices=2, split_batches=True, **arguments)
        alone = bench.in_child(lambda arguments=arguments: fit(bench, **arguments))
        bench.expect(f"weights, {name}", furthest(two.weights, alone.weights), at_most=tolerance)
        bench.expect(f"loss, {name}", two.loss, equal=alone.loss, within=1e-5)


def precision(bench: Bench) -> None:
    """Compare mixed precision with autocast by hand, and with fp32; with clipping, which sees unscaled gradients."""
    full = fit(bench)
    kinds = {"bf16-mixed": torch.bfloat16}
    if bench.cuda:
        kinds["16-mixed"] = torch.float16
    for name, dtype in kinds.items():
        for variant in ("plain", "clipped", "accumulated"):
            ours = fit(bench, precision=name, **trainer_arguments(**VARIANTS[variant]))
            theirs = fit_by_hand(bench.device, dtype, **VARIANTS[variant])
            bench.expect(f"{name}, {variant}, against by hand", furthest(ours.weights, theirs.weights), at_most=1e-3)
            if variant == "plain":
                bench.expect(f"{name}, against fp32", furthest(ours.weights, full.weights), at_most=0.05)
                bench.expect(f"{name}, differs from fp32", furthest(ours.weights, full.weights), at_least=1e-7)


def tf32(bench: Bench) -> None:
    """State what a product of fp32 matrices is computed in, and that workers compute it as their caller does."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=draw) for _ in range(2))
    exact = a.double() @ b.double()

    def error() -> float:
        product = (a.to(bench.device) @ b.to(bench.device)).cpu().double()
        return float((product - exact).abs().max() / exact.abs().max())

    bench.record("float32_matmul_precision at the start", torch.get_float32_matmul_precision())
    for setting, least, most in (("highest", 0.0, 1e-5), ("high", 1e-5, 5e-3)):
        torch.set_float32_matmul_precision(setting)
        bench.expect(f"error of a product, {setting}", error(), at_most=most, at_least=least if bench.cuda else 0.0)
        module = LooksAtPrecision()
        fit(bench, module, max_epochs=1)
        bench.expect(f"precision within a fit, {setting}", module.seen, equal=setting)
    torch.backends.cuda.matmul.fp32_precision = "tf32"  # the newer flag: lightning itself asks for the older one
    try:
        told = f"loss {fit(bench, max_epochs=1).loss:.3f}"
    except RuntimeError as error:
        told = f"error: {error}"
    bench.expect("a fit with torch.backends.cuda.matmul.fp32_precision", told, contains="loss")


class LooksAtPrecision(Regression):
    """A module that notes in what torch multiplies matrices while it trains."""

    seen = ""

    def on_train_start(self) -> None:
        self.seen = torch.get_float32_matmul_precision()


def deterministic(bench: Bench) -> None:
    """Compare two runs bit by bit."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    def run() -> Trained:
        seed_everything(4, verbose=False)
        return fit(bench, Regression(dropout=0.2), deterministic=True)

    one, two = run(), run()
    bench.expect("difference of two runs", furthest(one.weights, two.weights), equal=0.0)


def random_numbers(bench: Bench) -> None:
    """Compare dropout, drawn on the device, in one process, in DDP's only worker, and in workers of each kind."""
    kinds = bench.size(("fork", "payload"), ("fork",))  # for a payload new processes have to import everything

    def seeded(seed: int, **arguments: Any) -> Trained:
        def run() -> Trained:
            module = Regression(dropout=0.3)
            seed_everything(seed, verbose=False)
            return fit(bench, module, max_epochs=1, **arguments)

        return bench.in_child(run)

    alone = seeded(11)
    bench.expect("DDP with one worker", furthest(seeded(11, strategy="ddp").weights, alone.weights), at_most=1e-6)
    launched = [seeded(11, strategy=two_workers(bench), devices=2, launcher=kind) for kind in kinds]
    for kind, run in zip(kinds[1:], launched[1:], strict=True):
        bench.expect(f"{kind} against {kinds[0]}", furthest(run.weights, launched[0].weights), at_most=1e-6)
    other = seeded(12, strategy=two_workers(bench), devices=2, launcher=kinds[-1])
    bench.expect("another seed draws others", furthest(other.weights, launched[0].weights), at_least=1e-4)


CHECKS = (
    Check("numbers", "numbers", "one process on the device against the CPU", single, 1),
    Check("ddp-two", "numbers", "two workers on one device over gloo", ddp_two, 3, 60),
    Check("ddp-nccl", "numbers", "DDP with one worker over NCCL", ddp_alone, 2),
    Check("precision", "numbers", "mixed precision, GradScaler, clipping, accumulation", precision, 7),
    Check("tf32", "numbers", "TF32", tf32, 20),
    Check("deterministic", "numbers", "deterministic mode", deterministic, 21),
    Check("random", "numbers", "random numbers of the device in workers", random_numbers, 9, 60),
)
