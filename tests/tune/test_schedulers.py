"""The schedulers: what they end early and what they change, in Ray Tune itself."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray import cloudpickle, tune

from itwinai.errors import ConfigurationError
from itwinai.trials.records import Objective
from itwinai.tune.schedulers import ClipToSpace, check_together, make_scheduler
from itwinai.tune.searchers import make_searcher, param_space
from itwinai.tune.space import SearchSpace

LOSS = [Objective("loss", "min")]
BOTH = [Objective("loss", "min"), Objective("accuracy", "max")]

SPACE = """
lr: {loguniform: [1e-3, 1e-1]}
width: {quniform: [16, 64, 16]}
depth: {randint: [1, 4]}
optimizer: {choice: [sgd, adam]}
momentum: {uniform: [0.5, 0.99], when: {optimizer: sgd}}
strategy: {grid: [ddp, horovod]}
"""


def space_of(text: str) -> SearchSpace:
    return SearchSpace.from_mapping(yaml.safe_load(text))


class Steps(tune.Trainable):
    """Takes nine steps whose loss is what its config says, and keeps count of them in its checkpoints."""

    def setup(self, config: dict[str, Any]) -> None:
        self.config, self.count = config, 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.config, self.count = new_config, 0
        return True

    def step(self) -> dict[str, Any]:
        self.count += 1
        value = self.config["quality"]
        return {"loss": value, "accuracy": value, "given": dict(self.config), "done": self.count == 9}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        (Path(checkpoint_dir) / "count").write_text(str(self.count))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        self.count = int((Path(checkpoint_dir) / "count").read_text())


@pytest.fixture(autouse=True)
def quiet_tune(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")


def run_search(
    folder: Path, spec: Any, space: SearchSpace, objective: Objective, trials: int = 1, at_a_time: int = 1
) -> tune.ResultGrid:
    """Return the results of a search."""
    search_alg, num_samples = make_searcher("random", space, [objective], trials, seed=0, max_concurrent=at_a_time)
    scheduler = make_scheduler(spec, space, [objective], max_reports=9)
    check_together(scheduler, search_alg)
    tuner = tune.Tuner(
        Steps,
        param_space=param_space(search_alg, space),
        tune_config=tune.TuneConfig(
            metric=objective.metric,
            mode=objective.mode,
            search_alg=search_alg,
            scheduler=scheduler,
            num_samples=num_samples,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(name="search", storage_path=str(folder), verbose=0),
    )
    results = tuner.fit()
    assert not results.errors
    return results


def reports_by_quality(results: tune.ResultGrid) -> dict[float, int]:
    """Return how many steps each trial has taken."""
    return {result.metrics["given"]["quality"]: result.metrics["training_iteration"] for result in results}


QUALITIES = "quality: {{grid: {}}}"


def test_asha_ends_bad_trials_and_lets_good_ones_finish(local_ray: None, tmp_path: Path) -> None:
    space = space_of(QUALITIES.format([0, 10, 3, -1]))
    falling = reports_by_quality(run_search(tmp_path / "min", "asha", space, LOSS[0]))
    # The first has nothing to be compared with. The third is just in the best third at step 1, and not at step 3.
    assert falling == {0: 9, 10: 1, 3: 3, -1: 9}
    space = space_of(QUALITIES.format([2, 3, 1]))
    rising = reports_by_quality(run_search(tmp_path / "max", "asha", space, BOTH[1]))
    assert rising == {2: 9, 3: 9, 1: 1}


def test_hyperband_ends_bad_trials_and_comes_to_an_end(local_ray: None, tmp_path: Path) -> None:
    # Its first bracket lets three trials run to the end, the second starts with five and keeps the best two.
    space = space_of(QUALITIES.format([1, 2, 3, 4, 5, 6, 7, 8]))
    reports = reports_by_quality(run_search(tmp_path, "hyperband", space, LOSS[0], at_a_time=0))
    assert reports == {1: 9, 2: 9, 3: 9, 4: 9, 5: 9, 6: 3, 7: 3, 8: 3}


def test_median_ends_trials_below_the_median(local_ray: None, tmp_path: Path) -> None:
    spec = {"median": {"min_samples_required": 2}}
    reports = reports_by_quality(run_search(tmp_path, spec, space_of(QUALITIES.format([1, 2, 3, 0])), LOSS[0]))
    assert reports == {1: 9, 2: 9, 3: 1, 0: 9}


@pytest.mark.parametrize("name", ["pbt", "pb2"])
def test_parameters_change_during_trials_and_stay_inside(name: str, local_ray: None, tmp_path: Path) -> None:
    space = space_of(
        "quality: {uniform: [0.5, 0.6]}\n"
        "steps: {quniform: [16, 640, 16]}\n"
        "kind: {choice: [{a: 1}, {b: 2}]}\n"
        "only: {uniform: [0, 1], when: {kind: {a: 1}}}\n"
        "kept: {uniform: [0, 1]}\n"
    )
    mutate = ["quality", "steps", "kind"] if name == "pbt" else ["quality", "steps"]
    spec = {name: {"mutate": mutate, "quantile_fraction": 0.5, "perturbation_interval": 2, "synch": True}}
    run_search(tmp_path, spec, space, BOTH[1], trials=3, at_a_time=3)
    lines = [json.loads(line) for file in tmp_path.rglob("pbt_global.txt") for line in file.read_text().splitlines()]
    changes = [(line[4], line[5]) for line in lines]
    # The best is at 0.6 soon, and Ray would make it 0.72.
    assert any(old["quality"] != new["quality"] for old, new in changes)
    for old, new in changes:
        assert space.encode(space.active(new), "A changed trial") == {
            path: value for path, value in new.items() if path != "only" or new["kind"] == '{"a": 1}'
        }
        assert (old["kept"], old["only"]) == (new["kept"], new["only"])


def test_brought_back_inside() -> None:
    space = space_of(SPACE)
    keep = ClipToSpace(space.mutable())
    changed = keep({"lr": 0.12, "width": 19, "depth": 5, "optimizer": "adam", "momentum": 1.2, "strategy": "ddp"})
    # A condition or a grid keeps a scheduler from changing a parameter at all.
    assert changed == {"lr": 0.1, "width": 16, "depth": 3, "optimizer": "adam", "momentum": 1.2, "strategy": "ddp"}
    assert pickle.loads(pickle.dumps(keep)) == keep
    doubled = ClipToSpace(space.mutable(), lambda config: {**config, "width": config["width"] * 2})
    assert doubled({"width": 16}) == {"width": 32}


@pytest.mark.parametrize("max_reports", [1, 2, 3, 9, 10, 27])
def test_asha_ends_no_trial_at_its_last_report(max_reports: int) -> None:
    scheduler = make_scheduler("asha", space_of(SPACE), LOSS, max_reports)
    assert scheduler is not None and scheduler.set_search_properties("loss", "min")
    # The first two are equal for long, so that both get to the end, and there the second is worse.
    decisions = []
    for name in ("first", "second"):
        trial = tune.experiment.Trial(name, stub=True)
        scheduler.on_trial_add(None, trial)
        for number in range(1, max_reports + 1):
            loss = 2.0 if name == "second" and number == max_reports else 1.0
            decisions.append(scheduler.on_trial_result(None, trial, {"loss": loss, "training_iteration": number}))
    assert decisions == ["CONTINUE"] * 2 * max_reports


def test_nothing_is_scheduled_unless_asked_for() -> None:
    space = space_of(SPACE)
    assert make_scheduler(None, space, LOSS, None) is None
    for spec in ("fifo", {"fifo": None}):
        assert type(make_scheduler(spec, space, BOTH, None)).__name__ == "FIFOScheduler"


@pytest.mark.parametrize(
    ("spec", "max_reports"),
    [
        ({"asha": {"max_t": "1e1", "grace_period": 2, "brackets": 2}}, None),
        ({"asha": {"time_attr": "time_total_s", "max_t": 600}}, 9),
        ({"hyperband": {"reduction_factor": 2}}, 1),
        ({"median": {"time_attr": "time_total_s"}}, None),
        ({"pbt": {"synch": True, "mutate": "lr"}}, None),
        ("bohb", 81),
    ],
)
def test_schedulers_are_made_and_can_be_saved(spec: Any, max_reports: int | None) -> None:
    scheduler = make_scheduler(spec, space_of(SPACE), LOSS, max_reports)
    assert type(cloudpickle.loads(cloudpickle.dumps(scheduler))) is type(scheduler)
    # The metric is still free for TuneConfig to say.
    assert scheduler is not None and scheduler.set_search_properties("loss", "min")


@pytest.mark.parametrize(
    ("spec", "objectives", "max_reports", "message"),
    [
        ("ahsa", LOSS, 9, "no scheduler 'ahsa'. Did you mean 'asha'"),
        ({"asha": {}, "pbt": {}}, LOSS, 9, "it has asha, pbt"),
        ({"asha": {"grace": 2}}, LOSS, 9, "'asha' has no option 'grace'. Did you mean 'grace_period'"),
        ({"asha": {"metric": "loss"}}, LOSS, 9, "'asha' has no option 'metric': that is known from"),
        ({"asha": {"grace_period": 9}}, LOSS, 9, "never ends a trial before its report 9.* reports 9 times"),
        ({"asha": {"grace_period": "x"}}, LOSS, 9, "'asha' does not accept these options"),
        ({"asha": {"reduction_factor": 1}}, LOSS, 9, "'asha' does not accept these options: Reduction Factor"),
        ({"asha": {"time_attr": "time_total_s"}}, LOSS, 9, "'asha' measures trials by 'time_total_s'.*max_t"),
        ("asha", LOSS, None, r"'asha' needs to know how often a trial reports.*asha: \{max_t: 20\}"),
        ("hyperband", LOSS, None, "'hyperband' needs to know how often a trial reports"),
        ("asha", BOTH, 9, "'asha' compares trials by one objective, and there are 2.*fifo"),
        ("pbt", BOTH, 9, "'pbt' compares trials by one objective"),
        ({"fifo": {"x": 1}}, LOSS, 9, "'fifo' has no option 'x'"),
        ({"pbt": {"hyperparam_mutations": {}}}, LOSS, 9, "no option 'hyperparam_mutations': that is known"),
        ({"pbt": {"mutate": ["rl"]}}, LOSS, 9, "mutate names 'rl', which is not a parameter.*'lr'"),
        ({"pbt": {"mutate": ["momentum"]}}, LOSS, 9, "'pbt' cannot change 'momentum'.*Those are lr, width, depth, opt"),
        ({"pbt": {"mutate": ["strategy"]}}, LOSS, 9, "'pbt' cannot change 'strategy'"),
        ({"pbt": {"mutate": []}}, LOSS, 9, "mutate of the scheduler 'pbt' is empty"),
        ({"pb2": {"mutate": ["optimizer"]}}, LOSS, 9, "'pb2' cannot change 'optimizer'.*ranges of numbers"),
        ({"pbt": {"time_attr": "time_total_s"}}, LOSS, 9, "'pbt' measures trials by.*perturbation_interval"),
        ({"pbt": {"quantile_fraction": 0.9}}, LOSS, 9, "'pbt' does not accept these options: .*quantile_fraction"),
    ],
)
def test_what_is_wrong_is_said(spec: Any, objectives: list[Objective], max_reports: int | None, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_scheduler(spec, space_of(SPACE), objectives, max_reports)


def test_space_with_nothing_to_change() -> None:
    for name, text in {"pbt": "a: {grid: [1, 2]}", "pb2": "a: {choice: [1, 2]}"}.items():
        with pytest.raises(ConfigurationError, match=f"'{name}' changes parameters .* the space has none"):
            make_scheduler(name, space_of(text), LOSS, 9)


def test_schedulers_and_searchers_that_do_not_work_together() -> None:
    space = space_of("lr: {uniform: [0, 1]}")
    optuna, _ = make_searcher("optuna", space, LOSS, 2, max_concurrent=2)
    random, _ = make_searcher("random", space, LOSS, 2)
    with pytest.raises(ConfigurationError, match="so does OptunaSearch: use the searcher 'random'"):
        check_together(make_scheduler("pbt", space, LOSS, 9), optuna)
    with pytest.raises(ConfigurationError, match="'bohb' and the scheduler 'bohb' need each other"):
        check_together(make_scheduler("bohb", space, LOSS, 9), random)
    check_together(make_scheduler("pbt", space, LOSS, 9), random)
    check_together(make_scheduler("asha", space, LOSS, 9), optuna)
    check_together(None, optuna)
