"""`itwinai checkpoint`: look into checkpoints, verify them, and make other formats of them."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from itwinai.cli.arguments import ArgumentParser

_CLASS = "the LightningModule's class, as package.module.Class; by default the one that the checkpoint names"
_UNSAFE = "allow values other than tensors and plain ones, which may execute any code of the file"


def main(argv: Sequence[str]) -> int:
    """Run a subcommand.

    Args:
        argv: the arguments after ``checkpoint``.

    Returns:
        The exit code.
    """
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except FileNotFoundError as error:
        print(f"error: {_missing(str(error.filename or error))}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 1


def _missing(path: str) -> str:
    """Return the message for a checkpoint that is not there, with those that are."""
    from itwinai.errors import did_you_mean_file

    found = sorted(os.path.relpath(one) for one in Path().glob("**/*.ckpt"))
    there = f" Checkpoints here: {', '.join(found[:5])}." if found else ""
    return f"There is no checkpoint {path}.{did_you_mean_file(os.path.relpath(path), found)}{there}"


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser("itwinai checkpoint", description="Look into checkpoints and convert them.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    inspect = commands.add_parser(
        "inspect", help="show what is in a checkpoint", description="Show what is in a checkpoint."
    )
    inspect.add_argument("path", type=Path, help="a file, or the folder of a sharded checkpoint")
    inspect.add_argument("--unsafe", action="store_true", help=_UNSAFE)
    inspect.set_defaults(run=_inspect)

    text = "Read whole files and compare them with their checksums. The exit code is 1 if one is damaged."
    verify = commands.add_parser("verify", help="compare files with their checksums", description=text)
    verify.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="a file, or a folder of .ckpt files")
    verify.set_defaults(run=_verify)

    text = (
        "Convert a checkpoint: to its plain weights (TARGET ends in .pt or .safetensors), to a folder from which a "
        "DeepSpeed engine loads the weights (TARGET has no ending), or from a DeepSpeed engine's folder to a portable "
        "checkpoint with the weights (SOURCE is a folder, which is pickled: it needs --unsafe). To take the "
        "optimizer's state out of such a folder, resume from it once with the strategy that has written it."
    )
    convert = commands.add_parser("convert", help="to plain weights, to and from a DeepSpeed folder", description=text)
    convert.add_argument("source", type=Path, metavar="SOURCE")
    convert.add_argument("target", type=Path, metavar="TARGET")
    convert.add_argument("--unsafe", action="store_true", help=_UNSAFE)
    convert.set_defaults(run=_convert)

    text = (
        "Export: the weights (TARGET ends in .safetensors), or the module as a program (.onnx, .pt2), which needs its "
        "class and an example_input_array in it. A program is written if its outputs are those of the module."
    )
    export = commands.add_parser("export", help="to safetensors, ONNX or torch.export", description=text)
    export.add_argument("source", type=Path, metavar="SOURCE")
    export.add_argument("target", type=Path, metavar="TARGET")
    export.add_argument("--module", metavar="CLASS", help=_CLASS)
    export.add_argument("--unsafe", action="store_true", help=_UNSAFE)
    export.set_defaults(run=_export)
    return parser


def _inspect(arguments: argparse.Namespace) -> int:
    from itwinai.checkpoints import sharded
    from itwinai.checkpoints import state as checkpoint_state

    checkpoint = sharded.read_any(arguments.path, not arguments.unsafe)
    manifest = sharded.manifest_of(arguments.path)  # reading has verified it
    # What a sharded checkpoint weighs is not in its manifest.
    sizes = checkpoint_state.describe(checkpoint)
    about = {**sizes, **{name: manifest.about[name] for name in ("versions", "strategy")}} if manifest else sizes
    rows = {
        "file": f"{arguments.path} ({_size(_bytes(arguments.path))})",
        "format": f"itwinai {manifest.format}, verified" if manifest else "no manifest: not written by itwinai",
        "written": _time(manifest.written_at) if manifest else "unknown",
        "by": " ".join(f"{name} {version}" for name, version in about["versions"].items()) if manifest else "unknown",
        "strategy": _or_unknown(about["strategy"]),
        "world size": _or_unknown(about["world_size"]),
        "epoch, step": f"{_or_unknown(about['epoch'])}, {_or_unknown(about['global_step'])}",
        "weights": f"{about['parameters']:,} values in {about['tensors']} tensors, {_size(about['bytes_of_weights'])}",
        "optimizers": ", ".join(map(_optimizer, checkpoint.get("optimizer_states", []))) or "none",
        "schedulers": str(len(checkpoint.get("lr_schedulers", []))),
        "callbacks": ", ".join(checkpoint.get("callbacks", {})) or "none",
        "resumes": "exactly, under any strategy" if checkpoint_state.KEY in checkpoint else _resumes(checkpoint),
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
    weights = checkpoint.get("state_dict", {})
    if weights:
        names = max(map(len, weights))
        print()
        for name, value in weights.items():
            kind = f"{tuple(value.shape)!s:<20} {str(value.dtype).removeprefix('torch.')}" if _is_tensor(value) else ""
            print(f"  {name:<{names}}  {kind or type(value).__name__}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from itwinai.checkpoints.sharded import verify_any
    from itwinai.errors import CheckpointError

    damaged = 0
    files = _files(arguments.paths)
    if not files:
        print(f"error: there is no .ckpt file in {', '.join(map(str, arguments.paths))}", file=sys.stderr)
        return 1
    for path in files:
        try:
            manifest = verify_any(path)
        except OSError as error:
            damaged += 1
            print(f"UNREAD   {path}: {error.strerror or error}")
        except CheckpointError as error:
            damaged += 1
            print(f"DAMAGED  {path}: {getattr(error, 'reason', error)}")
        else:
            step = (
                "" if manifest is None else f" (step {manifest.about.get('global_step')}, {_time(manifest.written_at)})"
            )
            print(f"valid    {path}{step or ' (no manifest: only the checksums of its archive were compared)'}")
    return 1 if damaged else 0


def _convert(arguments: argparse.Namespace) -> int:
    from itwinai.checkpoints import convert
    from itwinai.checkpoints.sharded import is_sharded

    source, target, safe = arguments.source, arguments.target, not arguments.unsafe
    if source.is_dir() and not is_sharded(source):
        from itwinai.errors import ConfigurationError
        from itwinai.strategies.deepspeed import is_engine_checkpoint, read_engine_checkpoint

        if not is_engine_checkpoint(source):
            raise ConfigurationError(f"{source} is a folder without 'checkpoint' in it: no DeepSpeed engine wrote it.")
        if safe:
            raise ConfigurationError(
                f"{source} is a DeepSpeed engine's folder, whose files are pickled: to read them can execute any "
                "code. If you trust it, say --unsafe."
            )
        convert.from_engine_folder(source, target, read_engine_checkpoint)
    elif target.suffix == ".safetensors":
        convert.to_safetensors(source, target, safe)
    elif target.suffix in (".pt", ".pth", ".bin"):
        convert.to_weights(source, target, safe)
    elif target.suffix:
        from itwinai.errors import ConfigurationError

        raise ConfigurationError(
            f"Unknown file extension in {target}: use .pt, .pth, .bin or .safetensors, or none for a folder."
        )
    else:
        convert.to_engine_folder(source, target, safe)
    print(f"written: {target}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    if arguments.target.suffix == ".safetensors":
        from itwinai.checkpoints.convert import to_safetensors

        to_safetensors(arguments.source, arguments.target, not arguments.unsafe)
    else:
        from itwinai.checkpoints.export import export
        from itwinai.checkpoints.module_loading import load_module

        sys.path.insert(0, "")
        module = load_module(arguments.source, arguments.module, weights_only=not arguments.unsafe)
        export(module, arguments.target)
    print(f"written: {arguments.target}")
    return 0


def _files(paths: Sequence[Path]) -> list[Path]:
    from itwinai.checkpoints.naming import CONTENT, EXTENSION
    from itwinai.checkpoints.sharded import is_sharded
    from itwinai.io.atomic import PART

    found: list[Path] = []
    for path in paths:
        if not path.is_dir() or is_sharded(path):
            found.append(path)
            continue
        inside = (below for below in path.rglob(f"*{EXTENSION}") if PART not in str(below) and below.name != CONTENT)
        found += sorted(below for below in inside if below.is_file() or is_sharded(below))
    return found


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(portable_file.stat().st_size for portable_file in files)


def _optimizer(state: dict[str, Any]) -> str:
    kept = sorted({name for entry in state["state"].values() for name in entry})
    groups = state["param_groups"]
    return f"{sum(len(group['params']) for group in groups)} parameters in {len(groups)} groups ({', '.join(kept)})"


def _resumes(checkpoint: dict[str, Any]) -> str:
    return "at the end of an epoch" if "optimizer_states" in checkpoint else "no: weights only"


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).isoformat(" ", "seconds")


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def _or_unknown(value: object) -> str:
    return "unknown" if value is None else str(value)
