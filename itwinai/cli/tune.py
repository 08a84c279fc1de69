"""`itwinai tune`: search for good hyperparameters of the run that a config describes."""

from __future__ import annotations

import argparse
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from itwinai.cli.arguments import ArgumentParser
from itwinai.config.source import named_configs
from itwinai.errors import ConfigurationError

if TYPE_CHECKING:
    from itwinai.tune import SearchResult

_EPILOG = """
The config is one that `itwinai fit` accepts, with one more section:

  tune:
    metric: val_loss                  # any logged metric; mode: max to maximize it
    num_samples: 20
    scheduler: asha                   # stops bad trials early; or pbt, hyperband, median
    search: optuna                    # or random, grid...
    space:
      model.lr: {loguniform: [1.0e-5, 1.0e-1]}
      data.batch_size: {choice: [16, 32, 64]}

Every setting is a flag too: --tune.num_samples=50, --tune.overrides.trainer.max_epochs=5. All other flags
are those of `itwinai fit`, for the trials and the best config: --trainer.max_epochs=5.

settings:
  {settings}

distributions: {distributions}
searchers:     {searchers}
schedulers:    {schedulers}

docs/how-to/tune.md explains them.
"""


def main(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: the arguments after ``tune``.

    Raises:
        ConfigurationError: the config or the settings are invalid.
    """
    parser = ArgumentParser(
        prog="itwinai tune",
        usage="itwinai tune [-c CONFIG] [flags]",
        description="Search for good hyperparameters: many trials at once, each with one or several workers.",
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-c",
        "--config",
        action="append",
        metavar="FILE",
        help="config file of `itwinai fit` with a section 'tune'; later ones override earlier ones [config.yaml]",
    )
    parser.add_argument("--resume", action="store_true", help="resume an interrupted search")
    parser.add_argument("--retrain-best", action="store_true", help="train with the best config at the end")
    parser.add_argument("--address", help="of a Ray cluster; by default RAY_ADDRESS, or Ray is started here")
    given, others = parser.parse_known_args(argv)
    configs = named_configs(given.config, "itwinai tune")
    settings, arguments = _settings(others)

    from itwinai.slurm.result import leave_result
    from itwinai.tune import Tuner

    result = Tuner(configs, address=given.address, arguments=arguments, **settings).fit(resume=given.resume)
    if result.interrupted:
        return 130
    code = _retrain(result) if given.retrain_best else 0
    metrics = {} if result.best_value is None else {_metric(result): result.best_value}
    leave_result(metrics, result.best_checkpoint, result.best_parameters)
    return code


def _epilog() -> str:
    """Return what is below the flags in the help."""
    import dataclasses

    from itwinai.tune.distributions import DISTRIBUTIONS
    from itwinai.tune.schedulers import SCHEDULERS
    from itwinai.tune.searchers import SEARCHERS
    from itwinai.tune.settings import Settings

    names = {
        "settings": (field.name for field in dataclasses.fields(Settings)),
        "distributions": DISTRIBUTIONS,
        "searchers": SEARCHERS,
        "schedulers": SCHEDULERS,
    }
    text = _EPILOG
    for kind, listed in names.items():
        lines = textwrap.wrap(", ".join(listed), 100, break_on_hyphens=False)
        text = text.replace(f"{{{kind}}}", ("\n  " if kind == "settings" else f"\n{' ' * 15}").join(lines))
    return text


def _settings(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the settings among the arguments, ``--tune.NAME=VALUE``, and the other arguments."""
    import yaml

    settings: dict[str, Any] = {}
    others: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        flag, equals, value = argument.partition("=")
        if not flag.startswith("--tune."):
            others.append(argument)
            continue
        if not equals and (value := next(waiting, "")) == "":
            raise ConfigurationError(f"{flag} needs a value: {flag}=VALUE.")
        name, dot, path = flag.removeprefix("--tune.").partition(".")
        if dot:
            settings.setdefault(name, {})[path] = yaml.safe_load(value)
        else:
            settings[name] = yaml.safe_load(value)
    return settings, others


def _metric(result: SearchResult) -> str:
    """Return the name of the first objective."""
    return result.record.objectives[0].metric


def _retrain(result: SearchResult) -> int:
    """Train with the best config, as a user would, and return the exit code."""
    from itwinai.tune.search_result import BEST_CONFIG

    config = result.folder / BEST_CONFIG
    command = [sys.executable, "-m", "itwinai.cli.main", "fit", "-c", str(config)]
    print(f"training with the best config: itwinai fit -c {config}", flush=True)
    return subprocess.call([*command, f"--trainer.default_root_dir={result.folder / 'best'}"])
