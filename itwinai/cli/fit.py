"""`itwinai fit|validate|test|predict`: Lightning's own command line, with `ItwinaiTrainer` in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itwinai.config.source import expand_short_flags, flags_of, with_default_config
from itwinai.quick_imports import importing_quickly
from itwinai.strategies.registry import uses_ray
from itwinai.unify import unify_lightning

if TYPE_CHECKING:
    from itwinai.launchers.ray_init import RayWorkersRequest, StartingRay

UNIFY = "--unify-lightning"

HELP_ALL = "--help-all"

_DESCRIPTION = {"description": "Everything that can be set. `--help` shows what most people set, and the short flags."}

_WHAT = {
    "fit": "Train the model of a config.",
    "validate": "Evaluate the model of a config on its validation data.",
    "test": "Evaluate the model of a config on its test data.",
    "predict": "Run predict_step of the model of a config over its prediction data.",
}

# Defaults are in brackets.
_HELP = """usage: itwinai {command} [-c CONFIG] [flags]

{what} Flags win over the config; what a config takes as trainer: max_epochs: 5 is the flag --trainer.max_epochs 5.

model and data
  -c, --config FILE                 config file; given several times, the later ones win [config.yaml, if it is there
                                    and no --model is given]
  --model MODULE.CLASS              class of the model, if the config does not name it
  --data MODULE.CLASS               class of the data, if the config does not name it
  --model.NAME VALUE                an argument of the model; --data.NAME of the data
  --ckpt PATH                       checkpoint to start from; auto for the newest valid one{ckpt}
  --seed_everything N               seed [true: drawn for each run]

{more}workers
  --strategy NAME                   ddp, deepspeed, deepspeed_stage_0 to _3, horovod, ray, ray_deepspeed,
                                    ray_horovod, one of lightning's or of a plugin [auto: ddp for several workers]
  --devices N                       workers on each node [auto: all GPUs, or one process]
  --num-nodes N                     nodes [1]
  --trainer.accelerator NAME        cpu, gpu, mps [auto]
  --trainer.precision NAME          32-true, bf16-mixed, 16-mixed, 64-true... [null: 32-true]
  --trainer.split_batches BOOL      take batch sizes as global ones and divide them among workers [false]
  --trainer.max_restarts N          restart workers that die, at most N times [0]

length
  --trainer.max_epochs N            [null: 1000, unless max_steps is given]
  --trainer.max_steps N             [-1: no limit]
  --trainer.max_time TIME           as 00:12:00:00 (days:hours:minutes:seconds) [null]
  --trainer.accumulate_grad_batches N   batches of each optimizer step [1]
  --trainer.gradient_clip_val X     largest norm of the gradients [null]
  --trainer.check_val_every_n_epoch N   [1]
  --trainer.limit_train_batches N   number (5) or share (0.1) of batches; also limit_val_batches... [null: all]
  --trainer.fast_dev_run BOOL       one batch of everything, to try it out [false]

records
  --logger NAME                     csv, jsonl, tensorboard, mlflow, wandb, provenance, or of a plugin; several
                                    separated by commas
  --watch                           log, profile and monitor the run, and report at the end
  --trainer.default_root_dir DIR    where logs and checkpoints go [null: the current folder]
  --trainer.resume auto             resume from the newest valid checkpoint of this run's folders [null]
  --trainer.enable_progress_bar BOOL    [null: true]

more
  --print_config                    print the whole config with all defaults, and run nothing
  --model.help MODULE.CLASS         show the arguments of a class; --trainer.callbacks.help of a callback
  --unify-lightning                 accept modules made with the package pytorch_lightning
  --help-all                        show every flag
"""


_OF_PREDICT = """\
predictions
  --output FILE                     one file in the order of the samples: .parquet, .zarr, .pt, .safetensors; an
                                    interrupted prediction is resumed by the same command
  --columns NAMES                   parts of the batches to write too: keys (id,station), or positions ({target: 1})
  --split NAME                      predict the data of test, val or train in place of predict_dataloader
  --batch-size N                    batch size of the loaders; auto for the fastest that fits [their own]
  --overwrite                       replace a file that exists
  --ckpt none                       the model loads its weights itself; otherwise predictions need a checkpoint

"""
_OF_EVALUATION = """\
metrics
  --output FILE.json                write the metrics to a file

"""


def short_help(command: str) -> str:
    """Return what most people set, by groups."""
    more = {"predict": _OF_PREDICT, "validate": _OF_EVALUATION, "test": _OF_EVALUATION}.get(command, "")
    ckpt = "" if command == "fit" else " [auto, if there\n" + " " * 36 + "is one; none for the initial weights]"
    return _HELP.format(command=command, what=_WHAT[command], more=more, ckpt=ckpt)


def main(argv: list[str]) -> int:
    """Run Lightning's command line.

    Args:
        argv: the subcommand and its arguments.
    """
    if "-h" in argv or "--help" in argv:
        print(short_help(argv[0]), end="")
        return 0
    # As for a script: the config names classes in files of the current folder.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    arguments = ["--help" if argument == HELP_ALL else argument for argument in argv]
    arguments[1:] = with_default_config(arguments[1:])
    if UNIFY in arguments:
        arguments.remove(UNIFY)
        unify_lightning()
    with starting_workers(arguments) as starting:
        _run(arguments, starting)
    return 0


def starting_workers(arguments: Sequence[str]) -> AbstractContextManager[StartingRay | None]:
    """Return the context in which Ray starts while this process imports, if the workers are Ray's."""
    request = ray_workers(arguments)
    if request is not None:
        from itwinai.launchers.ray_init import ray_starting

        return ray_starting(request)
    return nullcontext()


def ray_workers(arguments: Sequence[str]) -> RayWorkersRequest | None:
    """Return what a command line says about its Ray workers, if it is plain to see.

    Args:
        arguments: the command line.

    Returns:
        None if other workers are asked for, or their number is not given, or something else is unclear.
    """
    asked: dict[str, Any] = {"strategy": None, "devices": None, "num_nodes": 1, "accelerator": "auto"}
    import yaml

    with suppress(
        OSError, LookupError, ValueError, TypeError, AttributeError, yaml.YAMLError
    ):  # the parser will say what is wrong
        for flag, value in flags_of(expand_short_flags(arguments)):
            if flag in ("--help", "--print_config"):
                return None
            if flag in ("-c", "--config"):
                section = yaml.safe_load(Path(value or "").read_text()).get("trainer") or {}
                asked |= {name: given for name, given in section.items() if name in asked}
            elif flag.startswith("--trainer.") and flag.removeprefix("--trainer.") in asked:
                asked[flag.removeprefix("--trainer.")] = value
        if isinstance(asked["strategy"], str) and uses_ray(asked["strategy"]):  # a class may name a cluster of its own
            from itwinai.launchers.ray_init import RayWorkersRequest

            workers = int(asked["devices"]) * int(asked["num_nodes"])
            if workers > 0:  # -1 is for all devices
                return RayWorkersRequest.of(workers, asked["strategy"], asked["accelerator"])
    return None


def _run(arguments: list[str], starting_ray: StartingRay | None) -> None:
    with importing_quickly():
        from itwinai.cli.save_config import SaveConfig
        from itwinai.config.lightning_cli import command_line
        from itwinai.slurm.result import leave_result

    cli = command_line(
        arguments,
        starting_ray,
        save_config_callback=SaveConfig,
        # Without a logger it goes to the current folder, where the user's own config.yaml may be.
        save_config_kwargs={"config_filename": "resolved-config.yaml", "overwrite": True},
        parser_kwargs={"prog": "itwinai", **dict.fromkeys(("fit", "validate", "test", "predict"), _DESCRIPTION)},
    )
    if cli.trainer.is_global_zero:
        best = getattr(cli.trainer.checkpoint_callback, "best_model_path", "")
        metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
        leave_result(metrics, best or None)
