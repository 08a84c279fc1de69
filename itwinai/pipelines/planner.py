"""Which steps run and why: decided from what is on disk, without running anything."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from itwinai.config.source import Given
from itwinai.errors import ConfigurationError, PipelineError, nearest
from itwinai.pipelines.commands import Command, check_config, class_paths_in
from itwinai.pipelines.content_hash import ABSENT, ContentHasher
from itwinai.pipelines.distributions import Distributions
from itwinai.pipelines.fingerprint import UNKNOWN, Fingerprint, config_texts
from itwinai.pipelines.outputs import KEPT, decode, pick
from itwinai.pipelines.record import RunFolder, StepRecord, output_digest
from itwinai.pipelines.references import Reference, references_in, replace
from itwinai.pipelines.source_code import SourceCode
from itwinai.pipelines.step_target import (
    ArgumentMistake,
    StepTarget,
    is_sample,
    not_kept,
    output_type,
    sample,
    takes_only_some,
    type_text,
)
from itwinai.pipelines.steps_file import Step, StepsFile

Status = Literal["runs", "cached", "may run", "as it is"]


@dataclass(frozen=True)
class PlannedStep:
    """What happens to a step.

    Attributes:
        name: of the step.
        status: ``runs``; ``cached`` if nothing has changed; ``may run`` if that depends on what another step makes;
            ``as it is`` if it was not asked for, and its outputs are used.
        reasons: in a few words each.
        fingerprint: what its result depends on, as far as it is known.
    """

    name: str
    status: Status
    reasons: Sequence[str]
    fingerprint: Fingerprint


@dataclass(frozen=True)
class Plan:
    """What happens to each step, in an order in which they can run."""

    steps: Sequence[PlannedStep]

    def of(self, name: str) -> PlannedStep:
        """Return what happens to a step."""
        return next(one for one in self.steps if one.name == name)

    def __str__(self) -> str:
        widths = [max(len(text) for text in column) for column in zip(*self._rows(), strict=True)]
        return "\n".join(
            f"{name:<{widths[0]}}  {status:<{widths[1]}}  {why}".rstrip() for name, status, why in self._rows()
        )

    def _rows(self) -> list[tuple[str, str, str]]:
        return [("step", "what", "why"), *((one.name, one.status, ", ".join(one.reasons)) for one in self.steps)]


@dataclass
class Planner:
    """Decides which steps run.

    Attributes:
        file: the pipeline.
        folder: of its outputs.
        hasher: digests of files.
        distributions: versions of packages.
        targets: functions and classes of the steps, once `check` has imported them.
    """

    file: StepsFile
    folder: RunFolder
    hasher: ContentHasher
    distributions: Distributions = field(default_factory=Distributions)
    targets: dict[str, StepTarget] = field(default_factory=dict)

    def check(self) -> None:
        """Import the steps, and check arguments and references with their types; nothing runs.

        Raises:
            ConfigurationError: something is wrong; the message says where.
        """
        for step in self.file.steps.values():
            try:
                self.targets[step.name] = StepTarget.load(step.class_path.value)
            except ConfigurationError as error:
                place = f"{step.class_path.at}: " if step.class_path.at else ""
                raise ConfigurationError(f"{place}steps.{step.name}.class_path: {error}") from None
        for step in self.file.steps.values():
            self._check_returns(step)
            self._check_step(step)

    def check_configs(self, plan: Plan) -> None:
        """Parse the configs of the built-in steps that may run, with the types of all arguments.

        Raises:
            ConfigurationError: something in a config is wrong.
        """
        for one in plan.steps:
            step = self.file.steps[one.name]
            if step.command and one.status in ("runs", "may run"):
                changing = [other.name for other in plan.steps if other.status in ("runs", "may run")]
                command, is_whole = self._command(step, changing, self._sample_of)
                if not is_whole:
                    continue  # its config is made by another step
                try:
                    check_config(command)
                except ConfigurationError as error:
                    raise self._config_error(step, error) from None

    def _config_error(self, step: Step, error: ConfigurationError) -> ConfigurationError:
        """Return the error of a config: where an override by reference is to blame, about what the pipeline says."""
        overrides = step.arguments.value.get("overrides")
        for path, given in overrides.value.items() if overrides is not None else ():
            references = [reference for reference, _ in references_in(given)]
            key = f"{path.replace('.init_args', '')}:"
            if len(references) == 1 and key in str(error).replace(".init_args", ""):
                returned = f"{references[0]} is {_a(type_text(self._type_of(references[0])))}"
                _, accepted, rest = str(error).partition("Accepted: ")
                place = f"{given.at}: " if given.at else ""
                return ConfigurationError(f"{place}steps.{step.name}.overrides.{path}: {returned}. {accepted}{rest}")
        return ConfigurationError(f"{step.at + ': ' if step.at else ''}steps.{step.name}: {error}")

    def plan(self, chosen: Sequence[str] = (), forced: Collection[str] = ()) -> Plan:
        """Return what happens to each step.

        Args:
            chosen: names and ranges of steps; all if empty.
            forced: names of steps that run in any case.

        Raises:
            ConfigurationError: there is no such step.
            PipelineError: a chosen step needs the outputs of one that is not chosen, and has not run.
        """
        selected = self.file.graph.select(chosen)
        if forced:
            forced = self.file.graph.select(list(forced))
            selected = self.file.graph.select([*selected, *forced])
        needed = set().union(*(self.file.graph.above(name) for name in selected))
        planned: dict[str, PlannedStep] = {}
        for name in self.file.graph.needs:
            if name in needed:
                changing = {other for other, one in planned.items() if one.status in ("runs", "may run")}
                one = self.decide(name, changing, name in forced)
                planned[name] = one if name in selected else self._as_it_is(one, selected)
        return Plan(list(planned.values()))

    def decide(self, name: str, changing: Collection[str] = (), is_forced: bool = False) -> PlannedStep:
        """Return what happens to a step.

        Args:
            name: of the step.
            changing: steps whose outputs are not known yet.
            is_forced: whether it runs in any case.
        """
        fingerprint = self.fingerprint(name, changing)
        folder = self.folder.of(name)
        record = StepRecord.read(folder)
        if is_forced:
            return PlannedStep(name, "runs", ["--force"], fingerprint)
        if record is None:
            part = self.folder.part_of(name, fingerprint)
            goes_on = part.is_dir() and self.targets[name].resumes
            why = ["goes on" if goes_on else "has not run yet", *self._absent_inputs(name)]
            return PlannedStep(name, "runs", why, fingerprint)
        changes = fingerprint.changes(record.fingerprint)
        if damage := record.damage(folder, self.hasher):
            changes.append(damage)
        if changes:
            return PlannedStep(name, "runs", changes, fingerprint)
        waits = [one for one in self.file.graph.needs[name] if one in changing]
        if UNKNOWN in fingerprint.inputs.values():
            return PlannedStep(name, "may run", [f"if the outputs of {', '.join(waits)} change"], fingerprint)
        return PlannedStep(name, "cached", [], fingerprint)

    def fingerprint(self, name: str, changing: Collection[str] = ()) -> Fingerprint:
        """Return what the result of a step depends on.

        Args:
            name: of the step.
            changing: steps whose outputs are not known yet.
        """
        step, target = self.file.steps[name], self.targets[name]
        arguments = self._with_references(step, target)
        config = dict(arguments)
        is_whole = True
        if step.command:
            command, is_whole = self._command(step, changing, str)
            try:
                config["config"] = command.resolved() if is_whole else {}
            except ConfigurationError as error:
                place = step.class_path.at or step.at
                raise ConfigurationError(f"{place + ': ' if place else ''}steps.{name}: {error}") from None
            config.pop("overrides", None)
        inputs = {}
        for reference, _ in references_in(step.arguments):
            unknown = reference.step in changing
            inputs[reference.label] = UNKNOWN if unknown else self._digest_of(reference)
        for path in self._files(step, target, config):
            digest = self.hasher.digest(Path(path))
            if digest != ABSENT or path in step.inputs:  # else it may be one that the step writes
                inputs[path] = digest
        code, packages = SourceCode().of(self._code_paths(step, config))
        packages |= {"itwinai"} if step.command else set()
        texts = config_texts(config)
        if not is_whole:  # another step makes it
            texts["config"] = UNKNOWN
        return Fingerprint(texts, inputs, code, self.distributions.versions(packages, step.packages))

    def references(self, name: str) -> list[Reference]:
        """Return the references of a step."""
        return [reference for reference, _ in references_in(self.file.steps[name].arguments)]

    def code_files(self, name: str) -> list[Path]:
        """Return the files of the user's code that a step runs."""
        step = self.file.steps[name]
        config = self._with_references(step, self.targets[name])
        if step.command:
            config["config"] = self._command(step, self.file.steps, str)[0].resolved()
        return SourceCode().files(self._code_paths(step, config))

    def values(self, name: str) -> dict[str, Any]:
        """Return the arguments of a step with the outputs that they refer to.

        Raises:
            ConfigurationError: a step has not the output.
            PipelineError: a step has not run.
        """
        step = self.file.steps[name]
        found: dict[str, Any] = replace(step.arguments.plain(), lambda one: _as_argument(self._output(one)))
        return found

    def absent_paths(self, name: str) -> list[str]:
        """Return the paths among the arguments of a step at which there is nothing: the step may write them."""
        step, target = self.file.steps[name], self.targets[name]
        config = self._with_references(step, target)
        if step.command:
            config["config"] = self._command(step, (), str)[0].resolved()
        found = [*_paths(target, config), *(text for text in _texts(config) if _may_be_path(text))]
        own = self._written_before(name)
        return [path for path in dict.fromkeys(found) if path in own or not Path(path).exists()]

    def _absent_inputs(self, name: str) -> list[str]:
        """Return a note for each path at which there is nothing, but something of a similar name beside it."""
        step, target = self.file.steps[name], self.targets[name]
        found: list[str] = []
        for text in _paths(target, self._with_references(step, target)):
            path = Path(text)
            if not path.exists() and path.parent.is_dir():
                # Another name may be that of a file which the step writes.
                similar = nearest(path.name, [one.name for one in path.parent.iterdir()], cutoff=0.8)
                found += [f"there is no {text} (but {similar})"] if similar else []
        return found

    def _as_it_is(self, one: PlannedStep, selected: Sequence[str]) -> PlannedStep:
        record = StepRecord.read(self.folder.of(one.name))
        users = [name for name in selected if one.name in self.file.graph.needs[name]]
        if record is None and users:
            raise PipelineError(
                f"The step '{users[0]}' needs the outputs of '{one.name}', which has not run. Run both: itwinai run "
                f"{self.file.path or 'pipeline.yaml'} ..{users[0]}"
            )
        late = [] if one.status == "cached" else [f"out of date: {', '.join(one.reasons)}"]
        return PlannedStep(one.name, "as it is", late, one.fingerprint)

    def _check_returns(self, step: Step) -> None:
        returns = self.targets[step.name].returns
        if (lost := not_kept(returns)) is not None:
            part = "" if lost == returns else f", with {_a(type_text(lost))} in it"
            place = f"{step.class_path.at}: " if step.class_path.at else ""
            raise ConfigurationError(
                f"{place}steps.{step.name}: {step.class_path.value} says that it returns {_a(type_text(returns))}"
                f"{part}, which cannot be kept. {KEPT}"
            )

    def _check_step(self, step: Step) -> None:
        target = self.targets[step.name]
        try:
            accepted = target.arguments
        except ArgumentMistake as mistake:
            raise ConfigurationError(f"{step.at + ': ' if step.at else ''}steps.{step.name}: {mistake}") from None
        whole: dict[str, Any] = {}
        for name, given in step.arguments.value.items():
            references = list(references_in(given))
            for reference, where in references:
                self._check_reference(step, reference, where)
            if references:
                value = replace(given.plain(), self._sample_of)
                hint = accepted.get(name, Any)
                if not _has_sample(value) or takes_only_some(hint):
                    continue
                whole[name] = value
            else:
                whole[name] = given.plain()
        try:
            target.resolve(whole, [name for name in step.arguments.value if name not in whole])
        except ArgumentMistake as mistake:
            given = step.arguments.find(mistake.argument) if mistake.argument else None
            references = [] if given is None else list(references_in(given))
            text = str(mistake)
            if references and "Accepted: " in text:
                returned = " and ".join(f"{one} is {_a(type_text(self._type_of(one)))}" for one, _ in references)
                text = f"{returned}. {text.partition('Accepted: ')[1]}{text.partition('Accepted: ')[2]}"
            key = f"{'' if step.command else 'init_args.'}{mistake.argument}" if mistake.argument else ""
            at = (given.at if given is not None else "") or step.at
            path = f"steps.{step.name}{'.' if key else ''}{key}"
            raise ConfigurationError(f"{at + ': ' if at else ''}{path}: {text}") from None

    def _check_reference(self, step: Step, reference: Reference, where: Given) -> None:
        try:
            self._type_of(reference)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"{where.at + ': ' if where.at else ''}steps.{step.name}: {reference}: the step '{reference.step}' has "
                f"no output {error}"
            ) from None

    def _type_of(self, reference: Reference) -> Any:
        return output_type(self.targets[reference.step].returns, reference.output)

    def _sample_of(self, reference: Reference) -> Any:
        return sample(self._type_of(reference))

    def _command(
        self, step: Step, changing: Collection[str], value_of: Callable[[Reference], Any]
    ) -> tuple[Command, bool]:
        """Return a built-in step, and whether all files of its config are there.

        Args:
            step: the step.
            changing: steps whose outputs are not known yet: config files that they make are left out.
            value_of: returns what is put in the place of references elsewhere.
        """
        config = step.arguments.value["config"]
        files = config.value if isinstance(config.value, list) else [config]
        known = [
            one
            for one in files
            if not any(
                reference.step in changing or StepRecord.read(self.folder.of(reference.step)) is None
                for reference, _ in references_in(one)
            )
        ]
        given = {name: replace(one.plain(), value_of) for name, one in step.arguments.value.items() if name != "config"}
        paths = [str(replace(one.plain(), lambda reference: self._output(reference))) for one in known]
        return self.targets[step.name].target(config=paths, **given), len(known) == len(files)

    @staticmethod
    def _code_paths(step: Step, config: Mapping[str, Any]) -> list[str]:
        """Return the functions and classes that a step begins with."""
        own = _classes_of(config["config"]) if step.command else [step.class_path.value]
        return [*class_paths_in(config), *own]

    def _with_references(self, step: Step, target: StepTarget) -> dict[str, Any]:
        """Return all arguments with defaults, and references as they are written."""
        given = step.arguments.value
        plain = {name: one.plain() for name, one in given.items() if not any(references_in(one))}
        written = {name: one.plain() for name, one in given.items() if name not in plain}
        return {**target.resolve(plain, list(written)), **written}

    def _files(self, step: Step, target: StepTarget, config: Mapping[str, Any]) -> list[str]:
        """Return the files and folders that a step reads, as far as its arguments name them."""
        found = [*step.inputs, *_paths(target, config)]
        own = self._written_before(step.name)
        found += [text for text in _texts(config) if _may_be_path(text) and _is_input(text)]
        skipped = self.folder.path.absolute()
        return [
            path
            for path in dict.fromkeys(found)
            if path not in own and not Path(path).absolute().is_relative_to(skipped)
        ]

    def _written_before(self, name: str) -> set[str]:
        """Return the paths among the arguments of a step that it has written itself."""
        record = StepRecord.read(self.folder.of(name))
        return self.folder.absent_before(name).union(() if record is None else record.was_absent)

    def _output(self, reference: Reference) -> Any:
        folder = self.folder.of(reference.step)
        record = StepRecord.read(folder)
        if record is None:
            raise PipelineError(f"The step '{reference.step}' has not run, and {reference} needs its outputs.")
        return decode(pick(record.outputs, reference.output, reference.step), folder)

    def _digest_of(self, reference: Reference) -> str:
        record = StepRecord.read(self.folder.of(reference.step))
        if record is None:
            return UNKNOWN
        pick(record.outputs, reference.output, reference.step)  # its error
        return output_digest(pick(record.content, reference.output, reference.step))


def _paths(target: StepTarget, arguments: Mapping[str, Any]) -> list[str]:
    """Return the values of the arguments that are paths by their type."""
    hints = target.arguments
    found: list[str] = []
    for name, value in arguments.items():
        text = str(hints.get(name, ""))
        hint = hints.get(name)
        is_path = (isinstance(hint, type) and issubclass(hint, os.PathLike)) or "Path" in text
        if is_path and name != "config":
            found += [one for one in _texts(value) if "${" not in one]
    return found


def _may_be_path(text: str) -> bool:
    """Return whether a text that may be anything looks like a path: it has an ending, or a folder."""
    if len(text) > 1024 or any(one in text for one in ("\0", "\n", "${", "://")):
        return False
    return "/" in text or bool(Path(text).suffix)


def _is_input(text: str) -> bool:
    """Return whether a text names a file, or a folder with an ending, as that of a store."""
    path = Path(text)
    return path.is_file() or (bool(path.suffix) and path.is_dir())


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for one in value.values() for text in _texts(one)]
    if isinstance(value, (list, tuple)):
        return [text for one in value for text in _texts(one)]
    return [value] if isinstance(value, str) and value else []


def _classes_of(config: Mapping[str, Any]) -> list[str]:
    """Return the classes that a config of `fit` names without ``class_path``, and the package of its strategy."""
    found = [value for section in ("model", "data") if isinstance(value := config.get(section), str) and "." in value]
    strategy = str((config.get("trainer") or {}).get("strategy", ""))
    return found + [f"{name}.*" for name in ("deepspeed", "horovod", "ray") if name in strategy]


def _as_argument(value: Any) -> Any:
    """Return an output as the config would have it: paths are texts."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {name: _as_argument(one) for name, one in value.items()}
    return [_as_argument(one) for one in value] if isinstance(value, list) else value


def _has_sample(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_has_sample, value.values()))
    return all(map(_has_sample, value)) if isinstance(value, list) else is_sample(value)


def _a(text: str) -> str:
    return text if " " in text or "[" in text else f"{'an' if text[:1].lower() in 'aeiou' else 'a'} {text}"
