"""`itwinai predictions`: verify files of predictions, and show what is in them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from itwinai.cli.arguments import ArgumentParser


def main(argv: Sequence[str]) -> int:
    """Run a subcommand.

    Args:
        argv: the arguments after ``predictions``.

    Returns:
        The exit code.
    """
    parser = ArgumentParser("itwinai predictions", description="Look into files of predictions.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = "Read whole files and compare them with their manifests. The exit code is 1 if one is damaged."
    verify = commands.add_parser("verify", help="compare files with their manifests", description=text)
    verify.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="a file that --output has written")
    verify.set_defaults(run=_verify)
    inspect = commands.add_parser("inspect", help="show what is in a file", description="Show what is in a file.")
    inspect.add_argument("path", type=Path, metavar="PATH", help="a file that --output has written")
    inspect.set_defaults(run=_inspect)
    arguments = parser.parse_args(argv)
    return int(arguments.run(arguments))


def _verify(arguments: argparse.Namespace) -> int:
    from itwinai.errors import ItwinaiError
    from itwinai.predictions.joined import verify

    damaged = 0
    for path in arguments.paths:
        try:
            manifest = verify(path)
        except ItwinaiError as error:
            print(f"error: {error}")
            damaged += 1
        else:
            print(f"{path}: whole, {sum(manifest.samples):,} samples, SHA-256 {manifest.sha256[:12]}...")
    return int(damaged > 0)


def _inspect(arguments: argparse.Namespace) -> int:
    from itwinai.predictions.joined import read_manifest
    from itwinai.reporting.formatting import bytes_text

    manifest = read_manifest(arguments.path)
    about = manifest.about
    loaders = " + ".join(f"{samples:,}" for samples in manifest.samples)
    rows = {
        "file": f"{arguments.path} ({bytes_text(manifest.bytes)})",
        "samples": loaders + (f" of {len(manifest.samples)} loaders" if len(manifest.samples) > 1 else ""),
        "written": f"{datetime.fromtimestamp(manifest.written):%Y-%m-%d %H:%M:%S} by itwinai {about.get('itwinai')}",
        "module": f"{about.get('module')}, weights of {about.get('checkpoint') or 'no checkpoint'}",
        "workers": str(about.get("workers")),
    }
    for name, value in rows.items():
        print(f"{name:<8} {value}")
    print("columns")
    width = max(map(len, manifest.columns))
    for name, kind in manifest.columns.items():
        print(f"  {name:<{width}}  {_readable(kind)}")
    return 0


def _readable(kind: str) -> str:
    """Return the type of a column as numpy would name it: ``float[2, 3]`` for lists of fixed size."""
    sizes = []
    while kind.startswith("fixed_size_list<"):
        inner, _, size = kind.removeprefix("fixed_size_list<").partition(": ")[2].rpartition(">[")
        sizes.append(size.rstrip("]"))
        kind = inner
    return f"{kind}[{', '.join(sizes)}]" if sizes else kind.replace("list<item: ", "list<")
