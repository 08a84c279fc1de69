"""A search from the plan of its resources to what it leaves in its folder."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cloudpickle
import yaml

from itwinai.errors import TrialError
from itwinai.io.atomic import write_whole
from itwinai.launchers.cpu_affinity import available_cores
from itwinai.reporting.formatting import key_of, path_text, short_names
from itwinai.reporting.search.ranking import paths_of
from itwinai.run_info.redaction import without_secrets
from itwinai.run_info.run import command_line, time_now, versions
from itwinai.strategies.registry import uses_ray
from itwinai.trials import records
from itwinai.trials.records import SearchRecord
from itwinai.tune.distributions import Choice, Range
from itwinai.tune.leaderboard import leaderboard_text, write_leaderboard
from itwinai.tune.mlflow_runs import ParentRun, open_parent_run, search_id
from itwinai.tune.progress import is_hopeless
from itwinai.tune.progress_display import SearchView
from itwinai.tune.ray_search import Search
from itwinai.tune.record_file import read_record, write_record
from itwinai.tune.report import write_report
from itwinai.tune.resource_plan import ResourcePlan, make_plan
from itwinai.tune.resources import cluster_nodes
from itwinai.tune.resume_check import FILE, check_same, fingerprint_of
from itwinai.tune.search_recorder import SearchRecorder
from itwinai.tune.search_result import BEST_CONFIG, LEADERBOARD, RECORD, REPORT, SearchResult
from itwinai.tune.settings import Settings
from itwinai.tune.space import SearchSpace
from itwinai.tune.stopper import SearchStopper
from itwinai.tune.trial_loggers import TrialContext, TrialLoggers
from itwinai.tune.trial_spec import TrialSpec

if TYPE_CHECKING:
    from itwinai.tune.search_target import SearchTarget


class SearchRun:
    """One start of a search.

    Args:
        settings: of the search.
        target: what it is over.
        fork_server_path: socket of the fork server, if there is one.
        resume: continue with what an interrupted process has left.
        quiet: print nothing.
    """

    def __init__(
        self, settings: Settings, target: SearchTarget, fork_server_path: str | None, resume: bool, quiet: bool
    ) -> None:
        self.settings = settings
        self.target = target
        self.fork_server_path = fork_server_path
        self.resume = resume
        self.quiet = quiet
        self.folder = Path(settings.folder)
        self.search = Search.of(settings, target.space, target.start_with(), target.max_reports())

    def run(self) -> SearchResult:
        """Run the trials, and leave what they have found.

        Raises:
            TrialError: all trials have failed.
        """
        plan = self._plan()
        fingerprint = fingerprint_of(self.settings, self.target.best_config({}))
        if self.resume:
            check_same(fingerprint, self.folder)
        self._say(plan.text())
        if (cores := available_cores()) < plan.resources.total.get("CPU", 0) and len(plan.nodes) == 1:
            self._say(f"{'':<12}the workers of a trial share {cores} cores of this machine: expect no speed-up")
        fingerprint.write(self.folder / FILE)
        recorder = SearchRecorder(
            self.settings.name,
            self.settings.objectives,
            self.target.space.paths,
            str(self.folder),
            self.target.space.active,
            settings={**self._shown_settings(), **self._origin()},
            ranges=_ranges(self.target.space),
            number_of=self.search.namer.number,
        )
        parent = open_parent_run(self.target.logger, self.settings.name, self.folder, self._shown_settings())
        view = SearchView(plan.num_trials, plan.at_once, self.settings.seconds)
        stopper = SearchStopper(self.settings, lambda: is_hopeless(recorder.record()))
        recorder.on_update = None if self.quiet else view.show
        with nullcontext() if self.quiet else view:
            self.search.run(self._trial_spec(parent), recorder, stopper, self.resume)
        return self._conclude(recorder.record(), parent)

    def _plan(self) -> ResourcePlan:
        target = self.target
        return make_plan(
            self.search.resources(target.strategy, uses_ray(target.strategy)),
            cluster_nodes(),
            None if self.settings.num_samples == -1 else self.search.num_samples,
            self.settings.max_concurrent,
            self.settings.seconds,
            self._seconds_per_trial(),
        )

    def _seconds_per_trial(self) -> float | None:
        """Return how long a trial took when this search ran before."""
        path = self.folder / RECORD
        if not path.exists():
            return None
        ended = [trial.seconds for trial in read_record(path).trials if trial.status in ("finished", "stopped")]
        return sum(ended) / len(ended) if ended else None

    def _trial_spec(self, parent: ParentRun | None) -> TrialSpec:
        context = TrialContext(self.settings.name, search_id(self.folder) if parent else "", self.folder)
        if parent is not None:
            context = replace(context, parent_run_id=parent.run_id, tracking_uri=parent.tracking_uri)
        loggers = TrialLoggers(self.target.logger, context)
        return TrialSpec(
            cloudpickle.dumps(self.target.trials(loggers)),
            str(self.folder),
            strategy=self.target.strategy,
            moment=self.settings.report_on,
            fork_server_path=self.fork_server_path,
        )

    def _conclude(self, record: SearchRecord, parent: ParentRun | None) -> SearchResult:
        interrupted = any(trial.status in ("waiting", "running", "paused") for trial in record.trials)
        ranked = record.ranked()
        config = self.target.best_config(ranked[0].parameters) if ranked else None
        text = "" if config is None else yaml.safe_dump(config, sort_keys=False)
        if text:
            write_whole(self.folder / BEST_CONFIG, text)
        write_record(record, self.folder / RECORD)
        write_leaderboard(record, self.folder / LEADERBOARD)
        shown = "" if config is None else yaml.safe_dump(without_secrets(config), sort_keys=False)
        write_report(record, self.folder / REPORT, shown)
        has_failed = not ranked and not interrupted
        if not has_failed:  # or else its error follows
            self._say(leaderboard_text(record))
        if not is_hopeless(record):
            self._say(self._places(record, bool(text), interrupted, parent))
        if parent is not None:  # at last, as its server may be away
            ended: Literal["FINISHED", "FAILED"] = "FINISHED" if ranked else "FAILED"
            parent.finish(record, "KILLED" if interrupted else ended, [self.folder / LEADERBOARD, self.folder / REPORT])
        if has_failed:
            raise _all_failed(record)
        return SearchResult(record, config, interrupted)

    def _places(self, record: SearchRecord, has_config: bool, interrupted: bool, parent: ParentRun | None) -> str:
        ranked = record.ranked()
        places = {"report": self.folder / REPORT, "leaderboard": self.folder / LEADERBOARD}
        if has_config:
            places["best config"] = self.folder / BEST_CONFIG
        if ranked and ranked[0].checkpoint:
            places["checkpoint"] = Path(ranked[0].checkpoint)
        lines = [f"{name:<12} {path_text(path)}" for name, path in places.items()]
        if ranked:  # with all digits, as the config has them: those of the leaderboard are rounded
            names = short_names(paths_of(record))
            texts = [f"{names[path]}={key_of(value)}" for path, value in ranked[0].parameters.items()]
            lines.append(f"{'best values':<12} {', '.join(texts)}")
        if parent is not None:
            lines.append(f"{'mlflow':<12} {parent.location_text()}")
        if interrupted:
            lines.append("The search was interrupted. Continue with the same command and --resume.")
        return "\n".join(lines)

    def _shown_settings(self) -> dict[str, str]:
        """Return the settings for people."""
        settings = self.settings
        rows: dict[str, Any] = {
            "searched for": ", ".join(f"{one.mode} {one.metric}" for one in settings.objectives),
            "searcher": settings.search,
            "scheduler": settings.scheduler or "none",
            "trials": "as many as the time allows" if settings.num_samples == -1 else self.search.num_samples,
            "seed": settings.seed,
            "workers per trial": settings.workers_per_trial,
            "strategy": self.target.strategy,
        }
        if settings.time_budget is not None:
            rows["time budget"] = settings.time_budget
        if settings.overrides:
            rows["for trials only"] = ", ".join(f"{path}={value}" for path, value in settings.overrides.items())
        return {name: str(value) for name, value in rows.items() if value is not None}

    def _origin(self) -> dict[str, str]:
        """Return what was searched over, when, by which command; of a resumed search, what its first start has."""
        path = self.folder / RECORD
        before = read_record(path).settings if self.resume and path.exists() else {}
        now = {
            "model": self.target.name,
            "begun": time_now(),
            "command": command_line(),
            "itwinai": versions().get("itwinai", ""),
        }
        return {name: before.get(name, value) for name, value in now.items() if value}

    def _say(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)


def _ranges(space: SearchSpace) -> dict[str, records.Range]:
    """Return what the parameters are drawn from, for the report."""
    ranges: dict[str, records.Range] = {}
    for parameter in space.parameters:
        drawn = parameter.distribution
        if isinstance(drawn, Choice):
            ranges[parameter.path] = records.Range(choices=drawn.values)
        elif isinstance(drawn, Range):
            ranges[parameter.path] = records.Range(drawn.lower, drawn.upper, drawn.log)
    return ranges


def _all_failed(record: SearchRecord) -> TrialError:
    failed = [trial for trial in record.trials if trial.error]
    if not failed:
        return TrialError("no trial has reported anything", "", record.folder)
    first = failed[0]
    return TrialError(
        f"no trial has succeeded; the first, {first.name}: {first.error}", "", f"{first.folder}/output.log"
    )
