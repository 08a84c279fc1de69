"""`itwinai myplugin`: a command of your own."""

from __future__ import annotations

import argparse


def main(arguments: list[str]) -> int:
    """Describe the data.

    Args:
        arguments: what follows ``itwinai myplugin``.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser("itwinai myplugin", description="Describe the data.")
    parser.add_argument("--samples", type=int, default=512, help="samples to train on (default: %(default)s)")
    args = parser.parse_args(arguments)
    # Imported here, so that --help answers at once.
    from itwinai_myplugin.datamodule import MyPluginDataModule

    data = MyPluginDataModule(samples=args.samples)
    data.setup("fit")
    for name, dataset in (("train", data.train), ("val", data.val)):
        targets = dataset.tensors[1]
        print(f"{name:<6}{len(dataset):>6} samples, targets {targets.mean():.3f} +- {targets.std():.3f}")
    return 0
