"""The space of a search: what is read, what is refused, what is active, what is drawn."""

from __future__ import annotations

import itertools
import math
import pickle
from typing import Any

import numpy
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from itwinai.errors import ConfigurationError
from itwinai.tune.distributions import DISTRIBUTIONS, Choice, Normal, Range, parse_distribution
from itwinai.tune.space import SearchSpace

EXAMPLE = """
model.init_args.momentum: {uniform: [0.5, 0.99], when: {model.init_args.optimizer: sgd}}
model.init_args.lr: {loguniform: [1e-5, 1e-1]}
model.init_args.channels: {choice: [8, 16, 32]}
data.init_args.batch_size: {quniform: [16, 128, 16]}
trainer.strategy: {grid: [ddp, horovod]}
model.init_args.optimizer: {choice: [sgd, adam]}
model.init_args.nesterov: {choice: [true, false], when: {model.init_args.momentum_kind: [heavy, light]}}
model.init_args.momentum_kind: {choice: [heavy, light, none], when: {model.init_args.optimizer: sgd}}
"""


def space_of(text: str) -> SearchSpace:
    """Return the space that a YAML text describes, with the parser of YAML 1.1."""
    return SearchSpace.from_mapping(yaml.safe_load(text))


def drawn(space: SearchSpace, seed: int) -> dict[str, Any]:
    """Return what Ray draws for all parameters."""
    generator = numpy.random.default_rng(seed)
    return {path: domain.sample(random_state=generator) for path, domain in space.sampled_domains().items()}


def test_example_is_read() -> None:
    space = space_of(EXAMPLE)
    assert space.paths[:2] == ("model.init_args.momentum", "model.init_args.lr")
    by_path = {parameter.path: parameter for parameter in space.parameters}
    assert by_path["model.init_args.lr"].distribution == Range("loguniform", 1e-5, 1e-1, log=True)
    assert by_path["data.init_args.batch_size"].distribution == Range("quniform", 16, 128, 16, integer=True)
    assert by_path["trainer.strategy"].distribution == Choice(("ddp", "horovod"), grid=True)
    assert by_path["model.init_args.momentum"].when == {"model.init_args.optimizer": ("sgd",)}
    assert by_path["model.init_args.nesterov"].when == {"model.init_args.momentum_kind": ("heavy", "light")}
    assert space.has_grid and space.size == math.inf
    assert pickle.loads(pickle.dumps(space)) == space


def test_parameters_are_active_where_all_they_depend_on_are() -> None:
    space = space_of(EXAMPLE)
    values = {**drawn(space, 1), "model.init_args.optimizer": "sgd", "model.init_args.momentum_kind": "light"}
    assert set(space.active(values)) == set(space.paths)
    assert list(space.active(values)) == list(space.paths)
    adam = space.active({**values, "model.init_args.optimizer": "adam"})
    # The third is inactive because the second is, although that one's drawn value is the right one.
    gone = {"momentum", "momentum_kind", "nesterov"}
    assert {path.rpartition(".")[2] for path in set(space.paths) - set(adam)} == gone
    assert "model.init_args.nesterov" not in space.active({**values, "model.init_args.momentum_kind": "none"})
    del values["model.init_args.momentum_kind"]
    assert "model.init_args.nesterov" not in space.active(values)
    assert space.active({"elsewhere": 1}) == {}


def test_several_conditions_must_all_be_met() -> None:
    space = space_of("a: {choice: [1, 2]}\nb: {choice: [true, false]}\nc: {uniform: [0, 1], when: {a: 1, b: true}}")
    met = [(a, b) for a in (1, 2) for b in (True, False) if "c" in space.active({"a": a, "b": b, "c": 0.5})]
    assert met == [(1, True)]


def test_list_is_one_value_where_the_parameter_has_lists() -> None:
    text = "layers: {{choice: [[16, 32], [64], wide]}}\nx: {{choice: [0, 1], when: {{layers: {}}}}}"
    scalars = ("[16, 32]", "[64]", "wide")
    one = space_of(text.format("[16, 32]"))
    assert [v for v in scalars if "x" in one.active({"layers": v, "x": 0})] == ["[16, 32]"]
    any_of = space_of(text.format("[[16, 32], wide]"))
    assert [v for v in scalars if "x" in any_of.active({"layers": v, "x": 0})] == ["[16, 32]", "wide"]


def test_numbers_that_yaml_reads_as_texts() -> None:
    assert yaml.safe_load("1e-5") == "1e-5"
    space = space_of("a: {choice: [1e-5, 1e-3, 1]}\nb: {choice: [1e5, deadbeef]}\nc: {choice: [0, 1], when: {a: 1e-3}}")
    a, b, c = space.parameters
    assert a.distribution == Choice((1e-5, 1e-3, 1)) and b.distribution == Choice(("1e5", "deadbeef"))
    assert c.when == {"a": (1e-3,)}
    assert space.encode({"a": "1e-5"}, "It") == {"a": 1e-5}


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"loguniform": {"lower": "1e-5", "upper": "1e-1"}}, Range("loguniform", 1e-5, 1e-1, log=True)),
        ({"uniform": [0, 1]}, Range("uniform", 0, 1)),
        ({"quniform": {"lower": 0, "q": 0.25, "upper": 1}}, Range("quniform", 0, 1, 0.25)),
        # As in Ray, the upper bound of integers is exclusive unless they have a step other than 1.
        ({"randint": [1, 4]}, Range("randint", 1, 3, integer=True)),
        ({"randint": [1.0, "1e1"]}, Range("randint", 1, 9, integer=True)),
        ({"lograndint": [1, 100]}, Range("lograndint", 1, 99, log=True, integer=True)),
        ({"qrandint": [2, 10]}, Range("qrandint", 2, 9, integer=True)),
        ({"qrandint": [2, 10, 2]}, Range("qrandint", 2, 10, 2, integer=True)),
        ({"quniform": [1, 4, 1]}, Range("quniform", 1, 4, integer=True)),
        ({"quniform": [1, 4, 1.0]}, Range("quniform", 1, 4, 1.0)),
        ({"qloguniform": [8, 512, 8]}, Range("qloguniform", 8, 512, 8, log=True, integer=True)),
        ({"randn": None}, Normal("randn", 0, 1)),
        ({"qrandn": [0, 10, 5]}, Normal("qrandn", 0, 10, 5, integer=True)),
        ({"choice": {"categories": ["a", None]}}, Choice(("a", None))),
        ({"grid": {"values": [1, 2]}}, Choice((1, 2), grid=True)),
        ({"grid_search": [1, 2]}, Choice((1, 2), grid=True)),
    ],
)
def test_distributions_are_read(entry: Any, expected: Any) -> None:
    assert parse_distribution("x", entry) == expected


def test_objects_of_ray_are_read() -> None:
    from ray import tune

    space = SearchSpace.from_mapping(
        {
            "a": tune.uniform(0, 1),
            "b": tune.quniform(0.0, 1.0, 0.1),
            "c": tune.loguniform(1e-4, 1),
            "d": tune.randint(0, 10),
            # Its multiples of 16 are 16 to 96.
            "e": tune.qrandint(10, 100, 16),
            "f": tune.lograndint(1, 10),
            "g": tune.qrandn(1, 2, 0.5),
            "h": tune.choice(numpy.array([1, 2])),
            "i": tune.grid_search(["x", "y"]),
        }
    )
    assert [parameter.distribution for parameter in space.parameters] == [
        Range("uniform", 0, 1),
        Range("quniform", 0, 1, 0.1),
        Range("loguniform", 1e-4, 1, log=True),
        Range("randint", 0, 9, integer=True),
        Range("qrandint", 16, 96, 16, integer=True),
        Range("lograndint", 1, 9, log=True, integer=True),
        Normal("qrandn", 1, 2, 0.5),
        Choice((1, 2)),
        Choice(("x", "y"), grid=True),
    ]
    with pytest.raises(ConfigurationError, match=r"'a' is given by Function of Ray.*`when`"):
        SearchSpace.from_mapping({"a": tune.sample_from(lambda config: 1)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.lr: {logunifrom: [1, 2]}", r"'model\.lr'.*'logunifrom'\. Did you mean 'loguniform'\?"),
        ("model.lr: {uniform: [1]}", r"uniform of the parameter 'model\.lr' needs 2 numbers.*given 1"),
        ("model.lr: {uniform: [1, 2, 3]}", r"'model\.lr' needs 2 numbers.*given 3"),
        ("model.lr: {qrandn: [1, 2]}", r"'model\.lr' needs 3 numbers, mean, sd, q"),
        ("model.lr: {uniform: {lower: 1, uper: 2}}", r"'model\.lr' has no argument 'uper'\. Did you mean 'upper'"),
        ("model.lr: {uniform: [low, 2]}", r"lower of .* 'model\.lr' must be a finite number, not 'low'"),
        ("model.lr: {uniform: [0, .inf]}", r"upper of .* 'model\.lr' must be a finite number"),
        ("model.lr: {uniform: [true, 2]}", r"lower of .* 'model\.lr' must be a finite number, not True"),
        ("model.lr: {uniform: [2, 2]}", r"'model\.lr' needs a lower bound below the upper one, not 2 and 2"),
        ("model.lr: {loguniform: [0, 1]}", r"'model\.lr' draws orders of magnitude and needs bounds above 0"),
        ("model.lr: {lograndint: [-3, 4]}", r"'model\.lr' .*needs bounds above 0, not -3"),
        ("model.lr: {randint: [0.5, 4]}", r"lower of .* 'model\.lr' must be an integer, not 0\.5"),
        ("model.lr: {quniform: [0, 1, 0]}", r"step q of .* 'model\.lr' must be above 0"),
        (
            "model.lr: {quniform: [16, 100, 16]}",
            r"bound 100 of .*'model\.lr' is not a multiple of its step 16; .* is 96",
        ),
        ("model.lr: {randn: [0, 0]}", r"deviation sd of .* 'model\.lr' must be above 0"),
        ("model.lr: {choice: []}", r"choice of the parameter 'model\.lr' is empty"),
        ("model.lr: {grid: abc}", r"grid of the parameter 'model\.lr' must be a list"),
        ("model.lr: {choice: [1, true]}", r"'model\.lr' has two values that no searcher can tell apart: 1 and True"),
        ("model.lr: {choice: [{a: 1}, {a: 1}]}", r"'model\.lr' has two values"),
        ("model.lr: {choice: [.nan]}", r"'model\.lr' holds nan"),
        ("model.lr: {choice: [2020-01-01]}", r"'model\.lr' holds datetime.*cannot be written to a config"),
        ("model.lr: {uniform: [0, 1], choice: [1]}", r"'model\.lr' needs one distribution, and has uniform, choice"),
        ("model.lr: {}", r"'model\.lr' needs one distribution, and has none"),
        ("model.lr: [1, 2]", r"'model\.lr' is a list.*\{choice: \[\.\.\.\]\}"),
        ("model.lr: 0.1", r"'model\.lr' is 0\.1, which is not a distribution"),
        ("model..lr: {uniform: [0, 1]}", r"'model\.\.lr' is not a path"),
        ("model/lr: {uniform: [0, 1]}", r"'model/lr' has a slash"),
        ("3: {uniform: [0, 1]}", r"3 is not a path"),
        ("", "must map paths"),
        (
            "a: {uniform: [0, 1], when: {optmizer: 1}}\noptimizer: {choice: [1]}",
            r"'a' is about 'optmizer'.*'optimizer'",
        ),
        ("a: {uniform: [0, 1], when: sgd}", r"`when` of the parameter 'a' must map"),
        ("a: {uniform: [0, 1], when: {b: 3}}\nb: {choice: [1, 2]}", r"'a' wants 'b' to be 3, which it can never"),
        ("a: {uniform: [0, 1], when: {b: [1, 3]}}\nb: {choice: [1, 2]}", r"'a' wants 'b' to be 3"),
        ("a: {uniform: [0, 1], when: {b: true}}\nb: {choice: [1, 2]}", r"'a' wants 'b' to be True"),
        ("a: {uniform: [0, 1], when: {b: 4}}\nb: {randint: [1, 4]}", r"'a' wants 'b' to be 4"),
        ("a: {uniform: [0, 1], when: {b: 0.15}}\nb: {quniform: [0, 1, 0.1]}", r"'a' wants 'b' to be 0\.15"),
        ("a: {uniform: [0, 1], when: {b: []}}\nb: {choice: [1, 2]}", r"'a' has no values for 'b'"),
        ("a: {uniform: [0, 1], when: {b: 0.5}}\nb: {uniform: [0, 1]}", r"'a' is about 'b'.*never have exactly"),
        (
            "a: {choice: [1], when: {b: 1}}\nb: {choice: [1], when: {c: 1}}\nc: {choice: [1], when: {b: 1}}",
            "b -> c -> b",
        ),
        ("a: {choice: [1], when: {a: 1}}", "a -> a"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        space_of(text)


def test_mappings_and_lists_are_searched_as_texts_and_given_back() -> None:
    text = "net: {choice: [{class_path: A, init_args: {n: 1}}, [1, 2], plain]}\nn: {choice: [1], when: {net: plain}}"
    space = space_of(text)
    scalars = space.sampled_domains()["net"].categories
    assert all(isinstance(scalar, str) for scalar in scalars)
    decoded = [space.active({"net": scalar})["net"] for scalar in scalars]
    assert decoded == [{"class_path": "A", "init_args": {"n": 1}}, [1, 2], "plain"]
    # What a trial does to its value is its own affair.
    decoded[0]["init_args"]["n"] = 2
    assert space.active({"net": scalars[0]})["net"]["init_args"] == {"n": 1}
    assert space.encode({"net": [1, 2]}, "It") == {"net": scalars[1]}
    with pytest.raises(ConfigurationError, match="is not among the values"):
        space.active({"net": "[1, 3]"})
    # Searchers that keep categories in arrays give NumPy's.
    assert space_of("a: {choice: [true, false]}").active({"a": numpy.bool_(True)}) == {"a": True}


def test_points_are_checked_against_the_space() -> None:
    space = space_of(EXAMPLE)
    with pytest.raises(ConfigurationError, match=r"A point names 'model\.init_args\.rl'.*'model\.init_args\.lr'"):
        space.encode({"model.init_args.rl": 0.1}, "A point")
    for path, value in {"lr": 0.5, "channels": 9, "momentum": "much"}.items():
        with pytest.raises(ConfigurationError, match=rf"A point has {value!r} for 'model\.init_args\.{path}'"):
            space.encode({f"model.init_args.{path}": value}, "A point")
    with pytest.raises(ConfigurationError, match="A point has 24 for"):
        space.encode({"data.init_args.batch_size": 24}, "A point")


def test_points_of_the_grid_respect_conditions() -> None:
    space = space_of(
        "momentum: {grid: [0.5, 0.9], when: {optimizer: sgd}}\n"
        "optimizer: {grid: [sgd, adam]}\n"
        "lr: {loguniform: [1e-4, 1]}\n"
        "nesterov: {grid: [true, false], when: {momentum: 0.9}}"
    )
    assert space.grid_points() == [
        {"optimizer": "sgd", "momentum": 0.5},
        {"optimizer": "sgd", "momentum": 0.9, "nesterov": True},
        {"optimizer": "sgd", "momentum": 0.9, "nesterov": False},
        {"optimizer": "adam"},
    ]
    assert space_of("lr: {uniform: [0, 1]}").grid_points() == [{}]
    drawn_condition = space_of("a: {grid: [1, 2], when: {b: x}}\nb: {choice: [x, y]}")
    with pytest.raises(ConfigurationError, match="'a' is a grid.*'b', which is drawn"):
        drawn_condition.grid_points()
    assert len(drawn_condition.with_choices_as_grid().grid_points()) == 3


def test_mutations_leave_out_grids_and_conditions() -> None:
    from ray.tune.search.sample import Float

    space = space_of(
        EXAMPLE + "model.init_args.layers: {randint: [1, 4]}\nmodel.init_args.width: {randint: [1, 400]}\n"
    )
    mutations = space.mutations()
    assert set(mutations) == {
        *("model.init_args.lr", "model.init_args.channels", "model.init_args.optimizer", "data.init_args.batch_size"),
        *("model.init_args.layers", "model.init_args.width"),
    }
    assert isinstance(mutations["model.init_args.lr"], Float)
    assert mutations["model.init_args.channels"] == [8, 16, 32]
    # 0.8 times 1, 2 or 3 is the same again: Ray steps along a list.
    assert mutations["model.init_args.layers"] == [1, 2, 3]
    assert mutations["data.init_args.batch_size"] == list(range(16, 129, 16))
    assert not isinstance(mutations["model.init_args.width"], list)


# ---- Properties ----

_ENTRIES = st.one_of(
    st.builds(
        lambda name, lower, length, step: {
            name: [lower * step, (lower + length) * step, *([step] if name[0] == "q" else [])]
        },
        st.sampled_from([name for name in DISTRIBUTIONS if name not in ("randn", "qrandn", "choice", "grid")]),
        st.integers(1, 50),
        st.integers(2, 50),
        st.sampled_from([1, 2, 7]),
    ),
    st.builds(
        lambda lower, length, step: {"quniform": [lower * step, (lower + length) * step, step]},
        st.integers(-50, 50),
        st.integers(1, 50),
        st.sampled_from([0.1, 0.25, 0.3]),
    ),
    st.builds(
        lambda mean, sd: {"qrandn": [mean, sd, 0.1]},
        st.floats(-10, 10),
        st.floats(0.1, 10),
    ),
    st.builds(lambda values: {"choice": values}, st.lists(st.integers(0, 9), min_size=1, unique=True)),
)


@settings(max_examples=150, deadline=None)
@given(_ENTRIES, st.integers(0, 2**20))
def test_what_ray_draws_is_what_the_distribution_takes(entry: dict[str, list[float]], seed: int) -> None:
    distribution = parse_distribution("x", entry)
    value = distribution.decode(distribution.domain().sample(random_state=numpy.random.default_rng(seed)))
    assert distribution.contains(value)
    assert type(value) in (int, float)
    assert isinstance(value, int) == (isinstance(distribution, Choice) or distribution.integer)
    assert distribution.decode(distribution.encode(value)) == value


@pytest.mark.parametrize(
    ("entry", "values"),
    [
        ({"randint": [1, 4]}, {1, 2, 3}),
        ({"qrandint": [2, 4, 1]}, {2, 3}),
        ({"qrandint": [2, 8, 2]}, {2, 4, 6, 8}),
        ({"lograndint": [1, 4]}, {1, 2, 3}),
        ({"qlograndint": [2, 8, 2]}, {2, 4, 6, 8}),
        ({"quniform": [16, 64, 16]}, {16, 32, 48, 64}),
        ({"quniform": [1, 3, 1]}, {1, 2, 3}),
        ({"quniform": [0.1, 0.3, 0.1]}, {0.1, 0.2, 0.3}),
        ({"qloguniform": [1, 3, 1]}, {1, 2, 3}),
        ({"choice": [[1, 2], None, "x"]}, {"[1, 2]", None, "x"}),
    ],
)
def test_ray_and_optuna_draw_the_same_values(entry: Any, values: set[Any]) -> None:
    import optuna

    distribution = parse_distribution("x", entry)
    assert distribution.count == len(values)
    domain, generator = distribution.domain(), numpy.random.default_rng(0)
    by_ray = [domain.sample(random_state=generator) for _ in range(100)]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    by_optuna = [distribution.suggest(study.ask(), "x") for _ in range(100)]
    if isinstance(distribution, Range):
        by_ray, by_optuna = ([distribution.decode(value) for value in drawn] for drawn in (by_ray, by_optuna))
        assert set(distribution.values()) == values
        # What Optuna learns from are the steps themselves, where it knows steps.
        learned_from = {distribution.decode(trial.params["x"]) == trial.params["x"] for trial in study.trials}
        assert learned_from == {True} or (distribution.log and distribution.step)
        assert all(isinstance(value, int) == distribution.integer for value in (*by_ray, *by_optuna))
    assert set(by_ray) == set(by_optuna) == values


def test_optuna_draws_a_normal_distribution() -> None:
    import optuna

    distribution = parse_distribution("x", {"randn": [10, 2]})
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = numpy.array([distribution.suggest(study.ask(), "x") for _ in range(1000)])
    assert abs(drawn.mean() - 10) < 0.3 and abs(drawn.std() - 2) < 0.2
    study.enqueue_trial({"x": distribution.pinned(7.5)})
    assert math.isclose(distribution.suggest(study.ask(), "x"), 7.5)


@settings(max_examples=150, deadline=None)
@given(_ENTRIES, st.floats(-1e4, 1e4))
def test_the_nearest_can_be_drawn(entry: dict[str, list[float]], value: float) -> None:
    distribution = parse_distribution("x", entry)
    if isinstance(distribution, Choice):
        return
    nearest = distribution.nearest(value)
    assert distribution.contains(nearest) and distribution.nearest(nearest) == nearest
    if distribution.contains(value):
        assert math.isclose(nearest, value, rel_tol=1e-6, abs_tol=1e-12)


@st.composite
def _grids(draw: Any) -> SearchSpace:
    """Return a space of grids, each perhaps with conditions about others before it."""
    mapping: dict[str, Any] = {}
    for number in range(draw(st.integers(1, 5))):
        entry: dict[str, Any] = {"grid": list(range(draw(st.integers(1, 3))))}
        parents = draw(st.lists(st.sampled_from(sorted(mapping)), max_size=2, unique=True)) if mapping else []
        when = {
            path: draw(st.lists(st.sampled_from(mapping[path]["grid"]), min_size=1, max_size=2, unique=True))
            for path in parents
        }
        mapping[f"p{number}"] = {**entry, **({"when": when} if when else {})}
    return SearchSpace.from_mapping(dict(draw(st.permutations(list(mapping.items())))))


@settings(max_examples=150, deadline=None)
@given(_grids())
def test_the_grid_is_what_is_left_of_all_combinations(space: SearchSpace) -> None:
    values = [parameter.distribution.search_values for parameter in space.parameters]
    every = [space.active(dict(zip(space.paths, point, strict=True))) for point in itertools.product(*values)]
    different = {tuple(point.items()) for point in every}
    points = space.grid_points()
    assert all(point == space.active(point) for point in points)
    assert {tuple(space.active(point).items()) for point in points} == different
    assert len(points) == len(different) == space.size
