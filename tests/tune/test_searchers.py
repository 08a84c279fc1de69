"""The searchers: which points they give, to Ray Tune itself where that matters."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import statistics
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray import tune

from itwinai.errors import ConfigurationError, MissingPackageError
from itwinai.trials.records import Objective
from itwinai.tune.searchers import make_searcher, param_space
from itwinai.tune.space import SearchSpace

LOSS = [Objective("loss", "min")]
BOTH = [Objective("loss", "min"), Objective("accuracy", "max")]

CONDITIONAL = """
momentum: {uniform: [0.5, 0.99], when: {optimizer: sgd}}
optimizer: {choice: [sgd, adam]}
lr: {loguniform: [1e-5, 1e-1]}
net: {choice: [{class_path: A}, {class_path: B, init_args: {n: 1}}]}
warmup: {randn: [5, 2]}
width: {qloguniform: [8, 512, 8]}
"""
GRID = """
lr: {loguniform: [1e-5, 1e-1]}
momentum: {grid: [0.5, 0.9], when: {optimizer: sgd}}
optimizer: {grid: [sgd, adam]}
"""


def space_of(text: str) -> SearchSpace:
    return SearchSpace.from_mapping(yaml.safe_load(text))


def points(spec: Any, space: SearchSpace, num_samples: int, seed: int | None = 0, **arguments: Any) -> list[dict]:
    """Return what the trials of a search would get, in order; each reports a loss when it is asked for the next."""
    search_alg, trials = make_searcher(spec, space, LOSS, num_samples, seed, **arguments)
    if not hasattr(search_alg, "add_configurations"):
        found = []
        for number in range(trials):
            found.append(search_alg.suggest(str(number)))
            search_alg.on_trial_complete(str(number), {"loss": found[-1]["lr"], "training_iteration": 1})
        return [space.active(values) for values in found]
    with tempfile.TemporaryDirectory() as folder:
        config = param_space(search_alg, space)
        experiment = tune.Experiment("points", _nothing, config=config, num_samples=trials, storage_path=folder)
        search_alg.add_configurations([experiment])
        return [space.active(trial.config) for trial in iter(search_alg.next_trial, None)]


def _nothing(config: dict[str, Any]) -> None:
    """Train nothing."""


class Reports(tune.Trainable):
    """Reports what it was given, at once."""

    def setup(self, config: dict[str, Any]) -> None:
        self.config = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.config = new_config
        return True

    def step(self) -> dict[str, Any]:
        lr = self.config["lr"]
        return {"loss": lr, "accuracy": 1 - lr, "given": dict(self.config), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Have no state."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Have no state."""


@pytest.fixture(autouse=True)
def quiet_tune(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")


def run_search(
    folder: Path, spec: Any, space: SearchSpace, objectives: list[Objective], num_samples: int, **run: Any
) -> tune.Tuner:
    """Return a tuner whose search is ready to start."""
    search_alg, trials = make_searcher(spec, space, objectives, num_samples, seed=0, max_concurrent=1)
    one = objectives[0] if len(objectives) == 1 else None
    return tune.Tuner(
        Reports,
        param_space=param_space(search_alg, space),
        tune_config=tune.TuneConfig(
            metric=one and one.metric,
            mode=one and one.mode,
            search_alg=search_alg,
            num_samples=trials,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(name="search", storage_path=str(folder), verbose=0, **run),
    )


def given(results: tune.ResultGrid) -> list[dict[str, Any]]:
    assert not results.errors
    return [result.metrics["given"] for result in results if result.metrics]


# ---- Random and grid ----


def test_seed_says_what_is_drawn() -> None:
    space = space_of(CONDITIONAL)
    first = points(None, space, 20, seed=1)
    assert points("random", space, 20, seed=1) == first
    assert points("random", space, 20, seed=2) != first
    assert points(None, space, 4, seed=None) != points(None, space, 4, seed=None)
    assert len({point["lr"] for point in first}) == 20


@pytest.mark.parametrize("spec", ["random", "optuna"])
def test_parameters_that_are_not_active_are_left_out(spec: str) -> None:
    found = points(spec, space_of(CONDITIONAL), 20)
    by_optimizer = {name: [p for p in found if p["optimizer"] == name] for name in ("sgd", "adam")}
    assert all(by_optimizer.values())
    assert all(0.5 <= point["momentum"] <= 0.99 for point in by_optimizer["sgd"])
    assert not any("momentum" in point for point in by_optimizer["adam"])
    assert all(point["net"] in ({"class_path": "A"}, {"class_path": "B", "init_args": {"n": 1}}) for point in found)
    assert all(point["width"] % 8 == 0 and isinstance(point["width"], int) for point in found)


def test_each_point_of_the_grid_is_tried_with_drawn_values() -> None:
    space = space_of(GRID)
    found = points("random", space, 3)
    grid = [{path: value for path, value in point.items() if path != "lr"} for point in found]
    assert grid[:3] == [
        {"momentum": 0.5, "optimizer": "sgd"},
        {"momentum": 0.9, "optimizer": "sgd"},
        {"optimizer": "adam"},
    ]
    assert grid == grid[:3] * 3
    assert len({point["lr"] for point in found}) == 9
    same = points({"random": {"constant_grid_search": True}}, space, 3)
    rates = [point["lr"] for point in same]
    assert rates[::3] == rates[1::3] == rates[2::3] and len(set(rates)) == 3
    assert [{k: v for k, v in point.items() if k != "lr"} for point in same] == grid


def test_grid_takes_choices_too_and_nothing_else() -> None:
    space = space_of("a: {choice: [1, 2]}\nb: {grid: [x, y], when: {a: 1}}")
    every = [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2}]
    assert points("grid", space, 1) == every
    assert points("grid", space, 2) == every * 2
    with pytest.raises(ConfigurationError, match="'lr' is loguniform.*searcher 'random'"):
        make_searcher("grid", space_of(GRID), LOSS, 1)
    with pytest.raises(ConfigurationError, match="'b' is a grid.*'a', which is drawn"):
        make_searcher("random", space, LOSS, 1)


def test_first_points_are_those_given() -> None:
    start = [
        {"lr": "1e-3", "optimizer": "adam", "momentum": 0.7, "warmup": 4.0, "net": {"class_path": "A"}},
        {"lr": 0.01},
    ]
    for spec in ("random", "optuna", {"optuna": {"sampler": "NSGAIISampler"}}):
        found = points(spec, space_of(CONDITIONAL), 5, start_with=start)
        assert len(found) == 5
        assert found[0].pop("warmup") == pytest.approx(4) and found[0].pop("width") in range(8, 513, 8)
        assert found[0] == {"optimizer": "adam", "lr": 1e-3, "net": {"class_path": "A"}}
        assert found[1]["lr"] == 0.01 and {"optimizer", "net"} < set(found[1])
    with pytest.raises(ConfigurationError, match="2 points to start with, and only 1 trials"):
        make_searcher("optuna", space_of(CONDITIONAL), LOSS, 1, start_with=start)
    with pytest.raises(ConfigurationError, match="A starting point names 'rl'.*'lr'"):
        make_searcher("optuna", space_of(CONDITIONAL), LOSS, 1, start_with=[{"rl": 1}])


def test_points_before_a_grid_are_not_repeated_by_it() -> None:
    space = space_of("a: {grid: [1, 2]}\nb: {grid: [x, y], when: {a: 1}}")
    found = points("grid", space, 1, start_with=[{"a": 2, "b": "x"}])
    assert found == [{"a": 2}, {"a": 1, "b": "x"}, {"a": 1, "b": "y"}]
    before = points("random", space_of(GRID), 1, start_with=[{"lr": 0.1, "optimizer": "adam"}])
    assert before[0] == {"lr": 0.1, "optimizer": "adam"} and len(before) == 4


def test_ray_runs_a_grid_with_drawn_values(local_ray: None, tmp_path: Path) -> None:
    space = space_of(GRID)
    found = [space.active(config) for config in given(run_search(tmp_path, "random", space, LOSS, 2).fit())]
    assert found == points("random", space, 2)
    assert [point["optimizer"] for point in found] == ["sgd", "sgd", "adam"] * 2


# ---- Optuna ----


def test_optuna_learns() -> None:
    space = space_of("lr: {uniform: [0, 1]}")
    rates = [point["lr"] for point in points({"optuna": {"n_startup_trials": 5}}, space, 40)]
    assert rates == [point["lr"] for point in points({"tpe": {"n_startup_trials": 5}}, space, 40)]
    assert statistics.median(rates[-20:]) < 0.1 < statistics.median(rates[:5])


def test_optuna_draws_no_parameter_that_is_not_active() -> None:
    search_alg, trials = make_searcher("optuna", space_of(CONDITIONAL), LOSS, 20, seed=0)
    found = [search_alg.suggest(str(number)) for number in range(trials)]
    assert {("momentum" in values, values["optimizer"]) for values in found} == {(True, "sgd"), (False, "adam")}


def test_optuna_is_told_all_objectives(local_ray: None, tmp_path: Path) -> None:
    space = space_of(CONDITIONAL)
    tuner = run_search(tmp_path, "optuna", space, BOTH, 6)
    configs = given(tuner.fit())
    assert {"sgd", "adam"} == {config["optimizer"] for config in configs}
    assert all(("momentum" in config) == (config["optimizer"] == "sgd") for config in configs)
    study = _study(tmp_path)
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    rates = [config["lr"] for config in configs]
    assert sorted(trial.values for trial in study.trials) == sorted([rate, 1 - rate] for rate in rates)
    # Nothing is learned about a parameter from trials that did not have it.
    assert all(("momentum" in trial.params) == (trial.params["optimizer"] == "sgd") for trial in study.trials)


def _study(folder: Path) -> Any:
    """Return the study that Ray has saved last: the names hold the time."""
    state = max((folder / "search").glob("searcher-state-*.pkl"))
    return pickle.loads(state.read_bytes())["_ot_study"]


class InterruptWhileThere(tune.Callback):
    """Interrupts the search as a user does, after two trials, while a file is there."""

    def __init__(self, file: Path) -> None:
        self.file, self.trials = file, 0

    def on_trial_complete(self, **event: Any) -> None:
        self.trials += 1
        if self.trials == 2 and self.file.exists():
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("spec", ["optuna", "random"])
def test_search_continues_where_it_was_interrupted(spec: str, local_ray: None, tmp_path: Path) -> None:
    space, interrupt = space_of(CONDITIONAL), tmp_path / "interrupt"
    interrupt.touch()
    tuner = run_search(tmp_path, spec, space, LOSS, 6, callbacks=[InterruptWhileThere(interrupt)])
    begun = given(tuner.fit())
    assert 2 <= len(begun) < 6
    interrupt.unlink()
    finished = given(tune.Tuner.restore(str(tmp_path / "search"), Reports).fit())
    expected = points(spec, space, 6)
    assert sorted(point["lr"] for point in finished) == sorted(point["lr"] for point in expected)
    if spec == "optuna":
        # One study, that was told of all trials.
        assert [trial.value for trial in _study(tmp_path).trials] == [point["lr"] for point in expected]


def test_saved_searcher_gives_the_same_next_points(tmp_path: Path) -> None:
    space = space_of(CONDITIONAL)
    first, _ = make_searcher({"optuna": {"n_startup_trials": 2}}, space, LOSS, 10, seed=3)
    for number in range(5):
        loss = first.suggest(str(number))["lr"]
        first.on_trial_complete(str(number), {"loss": loss, "training_iteration": 1})
    first.save_to_dir(str(tmp_path))
    second, _ = make_searcher({"optuna": {"n_startup_trials": 2}}, space, LOSS, 10, seed=4)
    second.restore_from_dir(str(tmp_path))
    assert [second.suggest(f"n{number}") for number in range(3)] == [first.suggest(f"n{number}") for number in range(3)]


def test_limit_of_trials_at_a_time() -> None:
    space = space_of("lr: {uniform: [0, 1]}")
    limited, _ = make_searcher("optuna", space, LOSS, 5, max_concurrent=2)
    assert limited.suggest("a") and limited.suggest("b") and limited.suggest("c") is None
    assert param_space(limited, space) == {}
    drawn, _ = make_searcher("random", space, LOSS, 5, max_concurrent=2)
    assert drawn.max_concurrent == 2 and list(param_space(drawn, space)) == ["lr"]


def test_optuna_says_nothing_of_its_study_and_is_as_loud_as_before() -> None:
    import optuna

    said: list[str] = []
    logger, before = logging.getLogger("optuna"), optuna.logging.get_verbosity()
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        make_searcher("optuna", space_of(CONDITIONAL), LOSS, 1)
        assert said == []
        optuna.create_study()
        assert len(said) == 1
    finally:
        optuna.logging.set_verbosity(before)
        logger.removeHandler(handler)


# ---- What is wrong ----


@pytest.mark.parametrize(
    ("spec", "text", "objectives", "message"),
    [
        ("optuan", CONDITIONAL, LOSS, "no searcher 'optuan'. Did you mean 'optuna'"),
        (
            {"optuna": {}, "random": {}},
            CONDITIONAL,
            LOSS,
            "one name, or one name with its options: it has optuna, random",
        ),
        ({"optuna": [1]}, CONDITIONAL, LOSS, "options of the searcher 'optuna' must be a mapping"),
        (
            {"random": {"constant_grid": True}},
            CONDITIONAL,
            LOSS,
            "'random' has no option 'constant_grid'.*constant_grid_search",
        ),
        ({"grid": {"x": 1}}, CONDITIONAL, LOSS, "'grid' has no option 'x'. Its options are none"),
        ({"optuna": {"n_startup": 3}}, CONDITIONAL, LOSS, "no option 'n_startup'. Did you mean 'n_startup_trials'"),
        (
            {"optuna": {"sampler": "NSGA2Sampler"}},
            CONDITIONAL,
            LOSS,
            "no sampler 'NSGA2Sampler'. Did you mean 'NSGAIISampler'",
        ),
        ({"optuna": {"sampler": "GridSampler"}}, CONDITIONAL, LOSS, "use the searcher 'grid'"),
        ({"optuna": {"sampler": "CmaEsSampler"}}, CONDITIONAL, BOTH, "'CmaEsSampler' of Optuna cannot do this search"),
        (
            {"optuna": {"sampler": "NSGAIISampler", "population_size": 1}},
            CONDITIONAL,
            BOTH,
            "does not accept these options",
        ),
        ("optuna", GRID, LOSS, "'momentum' is a grid, and the searcher 'optuna'.*choice"),
        ("hyperopt", GRID, LOSS, "'momentum' is a grid, and the searcher 'hyperopt'"),
        ("hyperopt", CONDITIONAL, BOTH, "'hyperopt' supports one objective, not 2"),
        ("random", CONDITIONAL, [], "needs an objective"),
    ],
)
def test_what_is_wrong_is_said(spec: Any, text: str, objectives: list[Objective], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_searcher(spec, space_of(text), objectives, 10, 0)


def test_missing_packages_are_named() -> None:
    # Searchers that nobody has to install, and whose packages these tests do not.
    with pytest.raises(MissingPackageError, match="'hebo' needs.*pip install HEBO"):
        make_searcher("hebo", space_of(CONDITIONAL), LOSS, 10)
    with pytest.raises(MissingPackageError, match="'CmaEsSampler' of Optuna needs.*pip install cmaes"):
        make_searcher({"optuna": {"sampler": "CmaEsSampler"}}, space_of("lr: {uniform: [0, 1]}"), LOSS, 10)
    with pytest.raises(ConfigurationError, match="num_samples must be at least 1"):
        make_searcher(None, space_of(CONDITIONAL), LOSS, 0)
