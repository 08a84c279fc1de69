"""The exceptions that itwinai raises where a caller may want to catch them.

Each message says what happened, why, and what to do next. The classes also derive from the built-in exception that
fits, so that code written for stock Lightning (``except ValueError``) keeps working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path


class ItwinaiError(Exception):
    """Base of every exception that itwinai raises itself."""


class ConfigurationError(ItwinaiError, ValueError):
    """What was asked for cannot be set up: unknown names, contradicting arguments, missing devices.

    Attributes:
        argument: name of the argument that is wrong, where it is one.
    """

    def __init__(self, message: str = "", *, argument: str | None = None) -> None:
        super().__init__(message)
        self.argument = argument


class UnknownArgumentError(ConfigurationError, TypeError):
    """A function got an argument that it does not have."""


class PluginError(ConfigurationError):
    """A name that an installed package adds cannot be used.

    Attributes:
        reason: what is wrong, without the name and the advice.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (str(self), self.reason)


class WrongTypeError(ConfigurationError, TypeError):
    """A function got an object of the wrong kind, such as a dataset in place of a DataLoader."""


class MissingPackageError(ItwinaiError, ImportError):
    """An optional package is not installed; the message holds its install line."""


class InstallError(ItwinaiError):
    """A package could not be built or installed."""


class PayloadError(ItwinaiError, TypeError):
    """The trainer, the module or the data cannot be sent to the workers."""


class ResourceError(ItwinaiError, RuntimeError):
    """The cluster cannot provide the workers that were asked for."""


class SlurmError(ItwinaiError, RuntimeError):
    """SLURM refused a job, or does not answer."""


class PipelineError(ItwinaiError, RuntimeError):
    """A step of a pipeline has failed, or needs the outputs of one that has not run."""


class WorkerError(ItwinaiError, RuntimeError):
    """A worker process ended without a result: it was killed, or could not even start."""


class TrialError(ItwinaiError, RuntimeError):
    """A trial of a search has failed."""

    def __init__(self, summary: str, details: str, output: str) -> None:
        super().__init__(f"{summary}\n(what the trial has printed is in {output})\n{details}".rstrip())
        self.summary = summary
        self.details = details
        self.output = output

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.summary, self.details, self.output)


class CompileStepError(ConfigurationError):
    """A training step cannot be compiled as it is written.

    Attributes:
        reason: what stands in the way, without the advice.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(
            f"compile_step=True: {reason}. {remedy} Or set compile_step='auto', which trains such a module without "
            "compiling it.",
            argument="compile_step",
        )
        self.reason = reason
        self.remedy = remedy

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.reason, self.remedy)


class UnusedParametersError(ItwinaiError, RuntimeError):
    """Parameters got no gradient, and the strategy was not told to expect that."""


class DriftError(ItwinaiError, RuntimeError):
    """The workers train different parameters, hold different values of them, or learn at different rates."""


class LoggedKeysError(ItwinaiError, RuntimeError):
    """The workers have logged different keys, so that their values cannot be reduced."""


class UnequalShapesError(ItwinaiError, RuntimeError):
    """The workers want to gather tensors of different shapes."""


class MetricMergeError(ItwinaiError, RuntimeError):
    """What the workers have accumulated in a metric cannot be merged to what one process would have."""


class UnequalStepsError(ItwinaiError, RuntimeError):
    """A worker ends an epoch, or the run, where another continues."""


class UnequalValuesError(ItwinaiError, RuntimeError):
    """The workers have different values by which each would decide on the course of the run."""


class MissingMetricError(ConfigurationError):
    """A metric that something monitors or reports is not logged."""

    def __init__(self, metric: str, logged: list[str], reader: str) -> None:
        names = ", ".join(logged) or "nothing"
        super().__init__(
            f"{reader} needs the metric '{metric}', which is not logged.{did_you_mean(metric, logged)} Logged so far: "
            f"{names}. Name one of these, or log it with self.log('{metric}', ...)."
        )
        self.metric = metric
        self.logged = logged
        self.reader = reader

    def __reduce__(self) -> tuple[type, tuple[str, list[str], str]]:
        return type(self), (self.metric, self.logged, self.reader)


class LoggerError(ItwinaiError, RuntimeError):
    """A logger's server is not there, or does not accept what is logged."""


class CheckpointError(ItwinaiError, RuntimeError):
    """A checkpoint cannot be written, read, or applied to this run."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """There is no checkpoint at the path that was given."""


class ExportError(ItwinaiError, RuntimeError):
    """A module that was written as a program gives other outputs than the module itself."""


class PredictorError(ItwinaiError, ValueError):
    """A `Predictor` is closed, or its inputs or outputs do not have one row per sample."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint file is not what was written: cut off, changed, or something else altogether."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"The checkpoint {path} is damaged: {reason}. Resume from another one (resume='auto' takes the newest "
            "that is valid); `itwinai checkpoint verify FOLDER` lists which are."
        )
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.path, self.reason)


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint holds more than tensors and plain values: to load it might execute code."""

    def __init__(self, path: str, types: list[str]) -> None:
        super().__init__(
            f"The checkpoint {path} holds more than tensors and plain values: {', '.join(types)}. Loading these can "
            "execute arbitrary code, so it was not loaded. If you trust the file, set weights_only=False in "
            "trainer.fit, validate, test or predict, --weights_only=false on the command line; or allow only these "
            "types with torch.serialization.add_safe_globals."
        )
        self.path = path
        self.types = types

    def __reduce__(self) -> tuple[type, tuple[str, list[str]]]:
        return type(self), (self.path, self.types)


def nearest(name: object, names: Iterable[str], cutoff: float = 0.5) -> str | None:
    """Return the name most similar to ``name``, ignoring case; None if none is similar enough.

    Args:
        name: what the user wrote.
        names: the valid names.
        cutoff: required similarity, from 0 to 1.
    """
    plain = {own.lower(): own for own in reversed(list(names))}
    found = difflib.get_close_matches(str(name).lower(), plain, n=1, cutoff=cutoff)
    return plain[found[0]] if found else None


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the name that was probably meant, or an empty string.

    A name of which the user wrote only the beginning or the end counts before one that is only similar.
    """
    given, known = str(name).lower(), list(names)
    part_of = [own for own in known if len(given) > 1 and own.lower().startswith(given)]
    part_of.sort(key=lambda own: not own.startswith(str(name)))  # as it is written, before with other capitals
    part_of += [own for own in known if len(given) > 1 and own.lower().endswith(given)]
    found = part_of[0] if part_of else nearest(given, known)
    return "" if found is None else f" Did you mean '{found}'?"


def did_you_mean_file(path: str, files: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the file that was probably meant, or an empty string.

    A file of the same name in another folder counts first. Else names are compared without folders and endings: in
    these all that could be meant are alike.
    """
    known = list(files)
    same = [own for own in known if own != path and Path(own).name == Path(path).name]
    found = same[0] if same else _nearest_stem(Path(path).stem, {Path(own).stem: own for own in reversed(known)})
    return "" if found is None else f" Did you mean '{found}'?"


def _nearest_stem(given: str, files: Mapping[str, str]) -> str | None:
    begun = [stem for stem in files if len(given) > 1 and stem.lower().startswith(given.lower())]
    stem = min(begun, key=len) if begun else nearest(given, files, cutoff=0.6)
    return None if stem is None else files[stem]


def require(package: str, install: str, needed_for: str) -> None:
    """Raise `MissingPackageError` unless a package can be imported.

    Args:
        package: import name of the package; it is looked up, not imported.
        install: the command line that installs it.
        needed_for: what the user asked for, as in ``strategy 'ray'``.
    """
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise MissingPackageError(f"{needed_for} needs the package '{package}', which is not installed here. {install}")
