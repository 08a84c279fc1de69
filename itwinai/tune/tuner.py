"""`Tuner`: search for good hyperparameters, from Python."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itwinai.config.source import check_config_files
from itwinai.errors import ConfigurationError, MissingMetricError, TrialError, require
from itwinai.launchers.environment_variables import environment_variables
from itwinai.launchers.forked_call import ForkedCall
from itwinai.launchers.ray_init import check_crowd
from itwinai.launchers.ray_slurm import agree_on_token, allocated_nodes, ray_over
from itwinai.launchers.slurm_job import earlier_tries
from itwinai.tracebacks import hides_framework_frames
from itwinai.tune.schedulers import SCHEDULERS
from itwinai.tune.search_result import SearchResult
from itwinai.tune.searchers import SEARCHERS, named_options
from itwinai.tune.settings import Settings
from itwinai.tune.space import SearchSpace

if TYPE_CHECKING:
    from itwinai.tune.search_target import SearchTarget

_FAILED = "all-trials-failed"
"""Name of an empty file in the folder of a search that has no result, which the next one of its name moves away."""

_INSTALL = "Install it with `pip install 'itwinai[tune]'`."


ConfigPath = str | os.PathLike[str]


class Tuner:
    """Search for the hyperparameters with which a training run reaches the best value of a metric.

    Trials run at the same time, as many as there is room for, on this machine or a Ray cluster, each with one or
    several workers. Everything that a search leaves is in one folder: its trials with their checkpoints, the best
    config, a leaderboard, and an HTML report with plots.

    Args:
        trainable: what to train: the path of a config file that `itwinai fit` accepts, or several, where later ones
            override earlier ones; such a config as a mapping; or a function that trains, which gets the parameters of a
            trial as a dictionary by path, and reports through `itwinai.callbacks.TuneReportCallback`.
        space: distributions by path in the config, as ``{"model.lr": {"loguniform": [1e-5, 1e-1]}}``; or of Ray, as
            ``{"model.lr": tune.loguniform(1e-5, 1e-1)}``. By default that of the config's ``tune`` section.
        metric: name of a logged metric, or several.
        mode: ``"min"`` or ``"max"``, one for all or one for each metric.
        address: of a Ray cluster; by default that of RAY_ADDRESS, and without one Ray is started: on all nodes in the
            batch script of a SLURM job with several, and else on this machine.
        arguments: further arguments of Lightning's command line, such as ``["--trainer.max_epochs=5"]``.
        quiet: print nothing.
        **settings: see `itwinai.tune.settings.Settings`; they override the config's ``tune`` section.

    Raises:
        ConfigurationError: the space, the settings or the config is invalid.
        MissingPackageError: Ray, or the package of a searcher, is not installed.
    """

    @hides_framework_frames
    def __init__(
        self,
        trainable: ConfigPath | Sequence[ConfigPath] | Mapping[str, Any] | Callable[[dict[str, Any]], Any],
        space: Mapping[str, Any] | None = None,
        *,
        metric: Any = None,
        mode: Any = None,
        address: str | None = None,
        arguments: list[str] | None = None,
        quiet: bool = False,
        **settings: Any,
    ) -> None:
        agree_on_token()
        for package in ("ray", "optuna", "rich"):
            require(package, _INSTALL, "A search")
        given = {"space": space, "metric": metric, "mode": mode}
        section, self._config = _split(trainable)
        settings |= {name: value for name, value in given.items() if value is not None}
        self.settings = Settings.from_mapping(_merged(section, settings))
        _check_names(self.settings)
        self.address = address
        self.arguments = arguments or []
        self.quiet = quiet
        self._function = trainable if callable(trainable) else None

    @hides_framework_frames
    def fit(self, *, resume: bool = False) -> SearchResult:
        """Run the search.

        Args:
            resume: continue an interrupted search: finished trials stay, running ones resume from their checkpoints.

        Returns:
            What it has found.

        Raises:
            ConfigurationError: something in the settings is wrong, or there is a search of this name already.
            ResourceError: there is no room for a single trial.
            TrialError: all trials have failed.
        """
        folder = Path(self.settings.folder)
        resume = resume or (earlier_tries() > 0 and _has_state(folder))  # a job of SLURM that is run again
        _check_folder(folder, resume)
        if not self.quiet:
            print("reading the config, and starting Ray ...", flush=True)
        with ExitStack() as contexts:
            fork_server_path = contexts.enter_context(_fork_server())
            contexts.enter_context(_importing_from(os.getcwd()))
            connected = contexts.enter_context(_ray(self.address, self.settings))
            parsing = self._parsing(fork_server_path)
            if parsing is not None:
                contexts.enter_context(parsing)
            from itwinai.tune.search_runner import SearchRun  # meanwhile, as that takes seconds too

            target = self._target(parsing)
            connected()
            (folder / _FAILED).unlink(missing_ok=True)
            try:
                return SearchRun(self.settings, target, fork_server_path, resume, self.quiet).run()
            except (TrialError, MissingMetricError):
                (folder / _FAILED).touch()
                raise

    def _parsing(self, fork_server_path: str | None) -> ForkedCall | None:
        """Begin to parse the config where Lightning is; None if there is no config, or Lightning is here."""
        if self._function is not None or fork_server_path is None or "lightning" in sys.modules:
            return None
        from itwinai.tune.search_target import ConfigTarget

        return ForkedCall(fork_server_path, ConfigTarget.parsed, self._config, self.arguments, self.settings)

    def _target(self, parsing: ForkedCall | None) -> SearchTarget:
        from itwinai.tune.search_target import ConfigTarget, FunctionTarget

        if self._function is not None:
            return FunctionTarget(self._function, self.settings)
        if parsing is None:
            return ConfigTarget.parsed(self._config, self.arguments, self.settings)
        target: ConfigTarget = parsing.result()
        return target


def _split(trainable: Any) -> tuple[dict[str, Any], Any]:
    """Return the ``tune`` section of a config, and the config, or its paths."""
    if callable(trainable):
        return {}, None
    given = [trainable] if isinstance(trainable, (str, os.PathLike)) else trainable
    paths = [] if isinstance(trainable, Mapping) else given
    configs = [dict(trainable)] if isinstance(trainable, Mapping) else [_read(Path(path)) for path in paths]
    section: dict[str, Any] = {}
    for config in configs:
        own = config.pop("tune", None) or {}
        if not isinstance(own, Mapping):
            raise ConfigurationError(f"The section 'tune' must be a mapping of settings; got {own!r}.")
        section |= own
    return section, configs[0] if isinstance(trainable, Mapping) else [os.fspath(path) for path in paths]


def _merged(section: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a config with others over them; of mappings by path, entry by entry."""
    merged = {**section, **settings}
    for name in ("space", "overrides", "resources_per_worker"):
        both = section.get(name), settings.get(name)
        if all(isinstance(one, Mapping) for one in both):
            merged[name] = {**section[name], **settings[name]}
    return merged


def _read(path: Path) -> dict[str, Any]:
    import yaml

    check_config_files(["-c", str(path)])
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    return config


def _has_state(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("experiment_state-*.json"))


def _check_folder(folder: Path, resume: bool) -> None:
    has_state = _has_state(folder)
    if resume and not has_state:
        raise ConfigurationError(
            f"There is no search to resume in {folder}. Start it without --resume (in Python by .fit()), or say with "
            "name and storage where it is."
        )
    if not resume and has_state and (folder / _FAILED).exists():  # there is nothing to lose
        earlier = folder.with_name(f"{folder.name}.failed")
        shutil.rmtree(earlier, ignore_errors=True)
        folder.rename(earlier)
    elif not resume and has_state:
        raise ConfigurationError(
            f"There is a search in {folder} already. Resume it with --resume (in Python .fit(resume=True)), give "
            "this one another name (tune.name), or delete the folder."
        )


@contextmanager
def _fork_server() -> Iterator[str | None]:
    """Begin to import what trials need, in a process that they are forked off; yield the path of its socket."""
    from itwinai.launchers.fork_server import ForkServer, can_fork
    from itwinai.tune.trial_spec import MODULES

    if not can_fork():
        yield None
        return
    fork_server = ForkServer(MODULES)
    try:
        yield fork_server.path
    finally:
        fork_server.close()


@contextmanager
def _importing_from(folder: str) -> Iterator[None]:
    """Find modules in a folder, as for a script: a config names classes in files of the current one."""
    added = folder not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if added and folder in sys.path:
            sys.path.remove(folder)


@contextmanager
def _ray(address: str | None, settings: Settings) -> Iterator[Callable[[], None]]:
    """Begin to start Ray, or to connect; yield what waits until it is there. End what was begun."""
    import ray

    if ray.is_initialized():
        yield lambda: None
        return
    with ExitStack() as contexts:
        address = address or os.environ.get("RAY_ADDRESS")
        if address is None and len(nodes := allocated_nodes()) > 1:
            address = contexts.enter_context(ray_over(nodes))
        check_crowd(settings.workers_per_trial, address, "workers per trial")
        yield contexts.enter_context(_connected(address, settings))


@contextmanager
def _connected(address: str | None, settings: Settings) -> Iterator[Callable[[], None]]:
    """Begin to connect to a cluster, or to start Ray here; yield what waits until it is there."""
    from itwinai.launchers.ray_init import StartingRay

    # Workers may share cores, as local processes may, unless it is said how many each needs.
    cpus = 1 if "CPU" in settings.resources_per_worker else settings.workers_per_trial
    starting = StartingRay(cpus, address=address, log_to_driver=False)
    try:
        # The search reports errors of trials; Ray would print those again that it has not fetched when it ends.
        with environment_variables({"RAY_IGNORE_UNHANDLED_ERRORS": "1"}):
            yield starting.wait
    finally:
        starting.end()


def _check_names(settings: Settings) -> None:
    """Raise an error for a distribution, searcher or scheduler that does not exist, before anything heavy is imported.

    Raises:
        ConfigurationError: one of these names is unknown.
    """
    SearchSpace.from_mapping(settings.space)
    named_options(settings.search, "random", SEARCHERS, "searcher")
    named_options(settings.scheduler, "fifo", SCHEDULERS, "scheduler")
