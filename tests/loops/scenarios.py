"""A training run described by plain values, and how Hypothesis draws one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

Options = tuple[tuple[str, Any], ...]

# Hooks of callbacks that a run of `fit`, `validate` or `test` calls.
CALLBACK_HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_train_start",
    "on_train_end",
    "on_sanity_check_start",
    "on_sanity_check_end",
    "on_fit_start",
    "on_fit_end",
    "setup",
    "teardown",
    "on_exception",
    "on_save_checkpoint",
    "on_load_checkpoint",
    "state_dict",
    "load_state_dict",
    "on_test_start",
    "on_test_epoch_start",
    "on_test_batch_start",
    "on_test_batch_end",
    "on_test_epoch_end",
    "on_test_end",
)

# Hooks that only modules have.
MODULE_HOOKS = (
    "optimizer_step",
    "optimizer_zero_grad",
    "backward",
    "configure_gradient_clipping",
    "clip_gradients",
    "lr_scheduler_step",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
    "on_validation_model_zero_grad",
    "on_validation_model_eval",
    "on_validation_model_train",
    "on_test_model_eval",
    "on_test_model_train",
)
TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
# Methods of the strategy and of the precision plugin that a user's own class may replace.
STRATEGY_METHODS = (
    "training_step",
    "validation_step",
    "post_training_step",
    "on_train_batch_start",
    "pre_backward",
    "backward",
    "post_backward",
    "optimizer_step",
    "batch_to_device",
)
PRECISION_METHODS = (
    "convert_input",
    "forward_context",
    "train_step_context",
    "val_step_context",
    "pre_backward",
    "backward",
    "post_backward",
    "optimizer_step",
    "clip_gradients",
)
# `on_sanity_check_*`, `on_exception` and the state of callbacks are not hooks of modules.
SHARED_HOOKS = tuple(
    hook
    for hook in CALLBACK_HOOKS
    if not hook.startswith("on_sanity") and hook not in ("on_exception", "state_dict", "load_state_dict")
)

TRAIN_STEP_HOOKS = CALLBACK_HOOKS[:6]
# Where `self.log` works during a fit, the steps included.
LOGGING_HOOKS = (
    "training_step",
    *TRAIN_STEP_HOOKS,
    "validation_step",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_epoch_end",
    "optimizer_step",
    "optimizer_zero_grad",
    "backward",
    "configure_gradient_clipping",
    "test_step",
    "on_test_epoch_end",
)


@dataclass(frozen=True)
class Log:
    """A call of ``self.log`` in one hook, in each of its visits or in some."""

    actor: str  # "module" or "callback N"
    hook: str
    name: str
    value: str  # see `runs.logged_value`
    options: Options = ()
    every: int = 1
    by_dict: bool = False
    positional: bool = False


@dataclass(frozen=True)
class Action:
    """Something that one hook does in one of its visits."""

    actor: str
    hook: str
    visit: int
    what: str  # see `runs.ACTIONS`


@dataclass(frozen=True)
class Scheduler:
    """A learning rate scheduler."""

    interval: str = "epoch"
    frequency: int = 1
    plateau: bool = False


@dataclass(frozen=True)
class Scenario:
    """Everything that a run depends on."""

    # The module.
    overridden: tuple[str, ...] = ()
    on_instance: tuple[str, ...] = ()  # of the overridden hooks: set on the object, not in its class
    step: str = "with index"
    returns: str = "tensor"
    val_step: str = "with index"
    manual: int = 0  # number of optimizers of manual optimization
    own_log: bool = False
    norm: bool = False
    dropout: bool = False
    optimizer: str = "sgd"
    schedulers: tuple[Scheduler, ...] = ()
    # The data.
    batch: str = "tensor"
    samples: int = 7
    loader: str = "map"
    val_loaders: int = 1
    datamodule_hooks: tuple[str, ...] = ()
    # The trainer.
    strategy: tuple[str, ...] = ()  # methods that a strategy of the user's own replaces
    precision: tuple[str, ...] = ()  # and those that a precision plugin replaces
    callbacks: tuple[tuple[str, ...], ...] = ()
    extras: tuple[str, ...] = ()  # see `runs.make_extra`
    reads: tuple[str, ...] = ()  # actors that read the metrics in every visit
    logs: tuple[Log, ...] = ()
    actions: tuple[Action, ...] = ()
    logger: str = "none"
    options: Options = ()
    # What follows.
    after: str = "nothing"


def rarely(draw: Any, one_in: int = 5) -> bool:
    """Draw True once in a while; shrinks to False."""
    return draw(st.integers(0, one_in - 1)) == one_in // 2  # the ends of a range are drawn more often


def subset(draw: Any, items: tuple[str, ...], most: int = 5) -> tuple[str, ...]:
    """Draw some of the items, in their order."""
    chosen = draw(st.lists(st.sampled_from(items), unique=True, max_size=most))
    return tuple(item for item in items if item in chosen)


def draw_log(draw: Any, actors: list[str], index: int, hooks: tuple[str, ...]) -> Log:
    """Draw a call of ``self.log`` that is allowed where it stands, most of the time."""
    hook = draw(st.sampled_from(hooks))
    in_callback = [actor for actor in actors if actor != "module" and hook in CALLBACK_HOOKS]
    actor = draw(st.sampled_from(["module", *in_callback]))
    per_step = "_start" not in hook and "_end" not in hook or "batch" in hook
    options: dict[str, Any] = {}
    if per_step and draw(st.booleans()):
        options["on_step"], options["on_epoch"] = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
    for name, values in {
        "prog_bar": [False, True],
        "logger": [True, False, None],
        "reduce_fx": ["mean", "sum", "max", "min"],
        "batch_size": [1, 3],
        "add_dataloader_idx": [True, False],
        "sync_dist": [True],
        "rank_zero_only": [True],
    }.items():
        if rarely(draw, 4):
            options[name] = draw(st.sampled_from(values))
    value = "two elements" if rarely(draw, 40) else draw(st.sampled_from(VALUES))
    if value == "graph":
        options["enable_graph"] = True
    by_dict = draw(st.booleans()) and value != "metric"
    return Log(
        actor,
        hook,
        # Now and then two calls share a name.
        f"m{0 if rarely(draw, 20) else index}",
        value,
        tuple(options.items()),
        draw(st.sampled_from([1, 1, 1, 2, 3])),
        by_dict,
        not by_dict and rarely(draw, 8),
    )


VALUES = (
    "loss",
    "float",
    "int",
    "bool",
    "tensor",
    "double",
    "half",
    "long",
    "one element",
    "changing",
    "graph",
    "metric",
    "nan",
)

# Focuses of drawing. What is out of focus mostly keeps its default.
HOOKS, LOGGING, OPTIMIZING, ENDING, RESUMING, FLAGS = (
    "hooks",
    "logging",
    "optimizing",
    "ending",
    "resuming",
    "flags",
)


@st.composite
def scenarios(draw: Any, focus: str) -> Scenario:
    """Draw a scenario.

    Args:
        draw: from Hypothesis.
        focus: which aspect varies most.
    """

    def wild(*aspects: str) -> bool:
        """Tell whether an aspect varies in this scenario."""
        return draw(st.booleans()) if focus in aspects else rarely(draw, 6)

    fields: dict[str, Any] = {}
    options: dict[str, Any] = {"max_epochs": draw(st.sampled_from([2, 1, 3]))}

    # The module.
    overridden: tuple[str, ...] = ()
    if wild(HOOKS, OPTIMIZING):
        overridden = subset(draw, MODULE_HOOKS + SHARED_HOOKS, 8)
    elif wild(HOOKS):
        overridden = MODULE_HOOKS + SHARED_HOOKS
    manual = draw(st.sampled_from([1, 2])) if wild(OPTIMIZING) and draw(st.booleans()) else 0
    fields["manual"] = manual
    if manual:
        overridden = tuple(hook for hook in overridden if hook not in ("configure_gradient_clipping", "clip_gradients"))
    if rarely(draw, 6):
        fields["on_instance"] = subset(draw, overridden) if overridden else ()
    fields["step"] = draw(st.sampled_from(["with index", "without index", "other name"]))
    if wild(HOOKS, OPTIMIZING):
        fields["returns"] = draw(
            st.sampled_from(["dict", "extras"] + (["none", "nothing"] if manual else ["some none"]))
        )
    fields["val_step"] = draw(st.sampled_from(["with index", "without index", "returns"]))
    fields["own_log"] = rarely(draw, 10)
    fields["dropout"] = rarely(draw, 6)
    if wild(OPTIMIZING):
        fields["optimizer"] = draw(st.sampled_from(["adamw", "lbfgs", "sgd"]))
    if wild(OPTIMIZING):
        fields["schedulers"] = tuple(
            Scheduler(draw(st.sampled_from(["epoch", "step"])), draw(st.sampled_from([1, 2])), rarely(draw, 3))
            for _ in range(draw(st.integers(1, 2)))
        )

    # The data.
    if wild(HOOKS):
        fields["batch"] = draw(st.sampled_from(BATCHES))
    if fields.get("batch") == "dict" and rarely(draw, 3):
        fields["datamodule_hooks"] = subset(draw, TRANSFER_HOOKS)
    fields["samples"] = draw(st.sampled_from([7, 8, 4]))
    if wild(FLAGS):
        fields["loader"] = draw(st.sampled_from(LOADERS))
    loader = fields.get("loader", "map")
    fields["val_loaders"] = draw(st.sampled_from([1, 0, 2]))

    # The trainer's flags.
    if wild(HOOKS) and draw(st.booleans()):
        fields["strategy"] = subset(draw, STRATEGY_METHODS)
    if wild(HOOKS) and draw(st.booleans()):
        fields["precision"] = subset(draw, PRECISION_METHODS)
    batches = (fields["samples"] + 1) // 2
    if wild(OPTIMIZING) and not manual:
        options["accumulate_grad_batches"] = draw(st.integers(2, 4))
    if wild(OPTIMIZING) and not manual:
        options["gradient_clip_val"] = draw(st.sampled_from([0.01, 0.5, 0, 0.0]))
        options["gradient_clip_algorithm"] = draw(st.sampled_from([None, "norm", "value"]))
    if wild(OPTIMIZING) and not fields.get("precision"):
        options["precision"] = draw(st.sampled_from(["bf16-mixed", "64-true"]))
    if wild(FLAGS):
        options["limit_train_batches"] = draw(st.sampled_from([2, 0.5, 3]))
        if isinstance(options["limit_train_batches"], float) and loader in ("iterable", "endless"):
            del options["limit_train_batches"]
        elif loader != "sequential":
            batches = min(batches, 2)
    if loader == "endless":
        options.setdefault("limit_train_batches", 3)
    if wild(FLAGS):
        options["limit_val_batches"] = draw(st.sampled_from([1, 0.5, 0]))
    if wild(FLAGS, LOGGING):
        options["val_check_interval"] = draw(
            st.sampled_from([1, 2, 0.5, 0.25] if loader not in ("iterable", "endless") else [1, 2])
        )
    if wild(FLAGS):
        options["check_val_every_n_epoch"] = draw(st.sampled_from([2, None]))
        if options["check_val_every_n_epoch"] is None and isinstance(options.get("val_check_interval"), float):
            options["val_check_interval"] = 3
    if wild(FLAGS):
        options["num_sanity_val_steps"] = draw(st.sampled_from([0, 1, -1]))
    if wild(FLAGS, ENDING):
        options["max_steps"] = draw(st.sampled_from([3, 5, 1]))
        if rarely(draw, 3):
            options["max_epochs"] = -1
    if wild(ENDING):
        options[draw(st.sampled_from(["min_steps", "min_epochs"]))] = draw(st.sampled_from([1, 2, 5]))
    if rarely(draw, 12) and focus == FLAGS:
        options["fast_dev_run"] = draw(st.sampled_from([True, 2]))
    if rarely(draw, 12) and focus == FLAGS:
        options["overfit_batches"] = draw(st.sampled_from([1, 2, 0.5]))
    if wild(FLAGS, LOGGING):
        options["log_every_n_steps"] = draw(st.sampled_from([1, 3, 2, 0]))
    if rarely(draw, 8):
        options["detect_anomaly"] = True
    if rarely(draw, 8):
        options["profiler"] = draw(st.sampled_from(["recording", "simple"]))
    if rarely(draw, 8):
        options["reload_dataloaders_every_n_epochs"] = 1
    if rarely(draw, 10):
        options["inference_mode"] = False
    fields["logger"] = draw(st.sampled_from(["recording", "none", "two"]))

    # Callbacks.
    callbacks = []
    for _ in range(draw(st.integers(0, 3))):
        callbacks.append(CALLBACK_HOOKS if wild(HOOKS) else subset(draw, CALLBACK_HOOKS, 6))
    extras: list[str] = []
    if wild(RESUMING):
        extras += subset(draw, CHECKPOINTS, 2)
        if "checkpoint epoch" in extras and "checkpoint train epoch" in extras:
            extras.remove("checkpoint epoch")  # lightning cannot tell the two apart
    if wild(ENDING):
        extras.append("early stopping")
    if rarely(draw, 8) and not manual and len(fields.get("schedulers", ())) < 2:
        extras.append("swa")
        fields["norm"] = draw(st.booleans())
        if fields["norm"]:
            fields["samples"] = 8
    if rarely(draw, 8) and not manual:
        extras.append("accumulation")
        options.pop("accumulate_grad_batches", None)
    if rarely(draw, 8):
        extras.append(draw(st.sampled_from(["lambda", "weight averaging", "lr monitor", "finetuning", "watching"])))
        if extras[-1] == "lr monitor" and fields["logger"] == "none":
            fields["logger"] = "recording"
    actors = ["module", *(f"callback {index}" for index in range(len(callbacks)))]
    fields["reads"] = tuple(actor for actor in actors if draw(st.booleans()))

    # What happens in hooks.
    logs = []
    for index in range(draw(st.integers(0, 6 if focus == LOGGING else 2))):
        logs.append(draw_log(draw, actors, index, LOGGING_HOOKS))
    if {"early stopping", "checkpoint best"}.intersection(extras) or any(
        scheduler.plateau for scheduler in fields.get("schedulers", ())
    ):
        logs.append(Log("module", "training_step", "watched", "loss", (("on_step", True), ("on_epoch", True))))
    if loader == "iterator step":  # lightning then asks for it
        logs = [replace(log, options=tuple({**dict(log.options), "batch_size": 2}.items())) for log in logs]
    actions = []
    for _ in range(draw(st.integers(1, 2)) if wild(ENDING) else 0):
        what = draw(st.sampled_from(ENDING_ACTIONS if focus == ENDING and draw(st.booleans()) else ACTIONS))
        hook = draw(st.sampled_from(("training_step", "validation_step", *CALLBACK_HOOKS[:14])))
        in_callback = [actor for actor in actors if actor != "module" and hook in CALLBACK_HOOKS]
        actor = draw(st.sampled_from(["module", *in_callback]))
        if what == "raise StopIteration" and hook.startswith("on_validation") and "batch" not in hook:
            what = "raise"  # it would end lightning's epoch in the midst of validation, with stages in disorder
        if what == "skip":
            actor, hook = "module", "on_train_batch_start"
        if what in ("add callback", "remove callback"):
            # lightning goes through the list while it changes. Ours knows what has changed from the next batch on.
            actor, hook = "module", draw(st.sampled_from(["on_train_batch_end", "on_validation_batch_end"]))
        if what in ("swap hook", "swap step"):
            # What is put on the module in the midst of an epoch counts from the next epoch on.
            actor, hook = "module", draw(st.sampled_from(["on_train_epoch_start", "on_train_epoch_end"]))
        actions.append(Action(actor, hook, draw(st.integers(1, 5)), what))

    if focus == RESUMING and draw(st.booleans()):
        hook = draw(st.sampled_from(["training_step", *CALLBACK_HOOKS[:14]]))
        actor = "callback 0" if callbacks and hook in CALLBACK_HOOKS else "module"
        actions.append(Action(actor, hook, draw(st.integers(1, 5)), "save"))

    # An actor has to have the hooks in which it does something.
    needed = {(entry.actor, entry.hook) for entry in (*logs, *actions)}
    steps = ("training_step", "validation_step", "test_step")
    missing = {hook for actor, hook in needed if actor == "module" and hook not in steps} - set(overridden)
    fields["overridden"] = overridden + tuple(sorted(missing))
    for index, hooks in enumerate(callbacks):
        added = {hook for actor, hook in needed if actor == f"callback {index}"} - set(hooks)
        callbacks[index] = hooks + tuple(sorted(added))
    fields["on_instance"] = fields.get("on_instance", ())

    if rarely(draw, 20) and focus == FLAGS:
        for name in ("fast_dev_run", "detect_anomaly", "profiler", "num_sanity_val_steps", "log_every_n_steps"):
            options.pop(name, None)
        options["barebones"] = True
        fields["logger"] = "none"
        extras = [extra for extra in extras if extra not in CHECKPOINTS and extra != "lr monitor"]
    after = "nothing"
    if focus == RESUMING:
        after = draw(st.sampled_from(["resume", "fit", "nothing"]))
    elif wild(LOGGING):
        after = draw(st.sampled_from(["validate", "test", "fit"]))
    if any(extra in CHECKPOINTS for extra in extras) and "fast_dev_run" in options:
        extras = [extra for extra in extras if extra not in CHECKPOINTS]
    return Scenario(
        callbacks=tuple(callbacks),
        extras=tuple(extras),
        logs=tuple(logs),
        actions=tuple(actions),
        options=tuple(options.items()),
        after=after,
        **fields,
    )


BATCHES = ("list", "dict", "tuple", "nested", "custom", "mixed", "some none", "named tuple")
LOADERS = ("iterable", "sized iterable", "dict of loaders", "endless", "iterator step", "shortest", "stateful")
CHECKPOINTS = ("checkpoint steps", "checkpoint epoch", "checkpoint train epoch", "checkpoint best")
ENDING_ACTIONS = ("raise", "raise StopIteration", "stop", "skip", "interrupt", "terminate")
ACTIONS = (
    *ENDING_ACTIONS,
    "copy",
    "pickle",
    "patch log",
    "unpatch log",
    "add callback",
    "remove callback",
    "read metrics",
    "save",
    "accumulate",
    "clip",
    "log elsewhere",
    "freeze",
    "more steps",
    "log always",
    "swap hook",
    "swap step",
    "swap optimizer",
    "swap step of optimizer",
    "no validation",
)
