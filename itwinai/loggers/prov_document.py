"""A run as a document of W3C PROV: what it used, what it generated, and who is responsible.

The names of classes and attributes are in the namespace ``itwinai:``, those of the things themselves in ``run:``, which
is another one for each run, so that documents of several runs can be put together.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from itwinai.errors import ConfigurationError
from itwinai.loggers.prov_records import Attempt, Metric, SavedCheckpoint
from itwinai.loggers.prov_vocabulary import (
    PACKAGES,
    SETTINGS,
    VOCABULARY,
    facts_of_activity,
    first_value,
    local_name,
    moment,
    settings_of,
)
from itwinai.run_info.redaction import without_secrets

if TYPE_CHECKING:
    from prov.model import ProvActivity, ProvDocument, ProvEntity

RUN = "run:run"
_URN = "urn:uuid:"
_OF_THE_WHOLE = ("itwinai:status", "itwinai:attempts")  # what changes with each attempt
_KNOWN_REGISTRIES = {"orcid.org": "orcid", "ror.org": "ror"}


def document_of(
    run_id: str,
    attempts: list[Attempt],
    *,
    earlier: str = "",
    agent: str = "",
    organisation: str = "",
    software: str = "",
) -> ProvDocument:
    """Return the document of a run.

    Args:
        run_id: a UUID.
        attempts: those of this process, one at least.
        earlier: document of the attempts before, as PROV-JSON.
        agent: address (as of ORCID) or name of the person who runs it.
        organisation: address (as of ROR) or name of the organisation.
        software: version of itwinai.
    """
    builder = _Builder(run_id, earlier)
    builder.add_run(attempts)
    for attempt in attempts:
        builder.add_attempt(attempt)
    builder.add_agents(agent, organisation, software)
    return builder.document


def run_id_of(earlier: str, path: Path) -> str:
    """Return the UUID of the run that a document is about.

    Args:
        earlier: the document, as PROV-JSON.
        path: where it is, for the message.

    Raises:
        ConfigurationError: it is something else.
    """
    from prov import Error
    from prov.model import ProvDocument

    try:
        spaces = {space.prefix: space.uri for space in ProvDocument.deserialize(content=earlier).namespaces}
        return spaces["run"].removeprefix(_URN).rstrip("#")
    except (Error, ValueError, KeyError) as error:
        raise ConfigurationError(
            f"{path} is not a document that itwinai has written ({error}), so that this run cannot be added to it. "
            "Move it away, or give the logger another version."
        ) from error


class _Builder:
    """Puts a document together.

    Args:
        run_id: a UUID.
        earlier: a document that is continued, as PROV-JSON, or an empty text.
    """

    def __init__(self, run_id: str, earlier: str) -> None:
        from prov.model import ProvActivity, ProvDocument

        self.document = document = ProvDocument()
        document.add_namespace("itwinai", VOCABULARY)
        document.add_namespace("run", f"{_URN}{run_id}#")
        document.add_namespace("setting", SETTINGS)
        document.add_namespace("package", PACKAGES)
        self.earlier_run: ProvActivity | None = None
        self.activities: list[ProvActivity] = []
        self.number = 0  # of the attempt
        self.checkpoints: dict[str, ProvEntity] = {}  # by path
        for record in ProvDocument.deserialize(content=earlier).get_records() if earlier else ():
            if isinstance(record, ProvActivity) and str(record.identifier) == RUN:
                self.earlier_run = record
                self.number = first_value(record, "itwinai:attempts")
                continue
            copied = document.add_record(record)
            if isinstance(path := first_value(copied, "itwinai:path"), str):
                self.checkpoints[path] = copied  # type: ignore[assignment]

    def add_run(self, attempts: list[Attempt]) -> None:
        """Add the activity of the whole run."""
        last, first = attempts[-1], attempts[0]
        began: Any = moment(first.began)
        attributes: list[tuple[Any, Any]] = [
            ("itwinai:status", last.status),
            ("itwinai:attempts", self.number + len(attempts)),
        ]
        if self.earlier_run is not None:
            began = self.earlier_run.get_startTime()
            kept = self.earlier_run.extra_attributes
            attributes += [(name, value) for name, value in kept if str(name) not in _OF_THE_WHOLE]
        else:
            attributes += [("prov:type", self._type("Run")), *facts_of_activity(first.facts)]
        ended = None if last.ended is None else moment(last.ended)
        self.activities.append(self.document.activity(RUN, began, ended, attributes))

    def add_attempt(self, attempt: Attempt) -> None:
        """Add what an attempt has used and generated."""
        self.number += 1
        document, activity = self.document, self._activity_of(attempt)
        used = [entity for entity in (self._data(attempt), self._config(attempt)) if entity is not None]
        if (facts := attempt.facts) is not None:
            if facts.code is not None:
                code = [(f"itwinai:{name}", value) for name, value in asdict(facts.code).items() if value != ""]
                used.append(self._entity(f"code-{self.number}", "Code", code))
            packages = [(f"package:{local_name(name)}", value) for name, value in facts.versions.items()]
            used.append(self._entity(f"environment-{self.number}", "Environment", packages))
        sources = used[:1] if attempt.data else []
        if attempt.resumed_from is not None:
            start = self._checkpoint(attempt.resumed_from, 0)
            used.append(start)
            sources.append(start)
        for entity in used:
            document.used(activity, entity)
        generated = [self._metric(name, metric) for name, metric in attempt.metrics.items()]
        generated += [self._checkpoint(checkpoint, self.number) for checkpoint in attempt.all_checkpoints()]
        for entity in generated:
            document.wasGeneratedBy(entity, activity)
            for source in sources:
                document.wasDerivedFrom(entity, source)

    def add_agents(self, agent: str, organisation: str, software: str) -> None:
        """Add the agents of all activities that were added."""
        from prov.constants import PROV
        from prov.model import ProvAssociation, ProvDelegation

        document = self.document
        agents = [self._agent(f"itwinai:software-{local_name(software)}", PROV["SoftwareAgent"], f"itwinai {software}")]
        for given, kind, of_prov in ((agent, "person", "Person"), (organisation, "organisation", "Organization")):
            if given:
                agents.append(self._agent(self._identifier(given, kind), PROV[of_prov], given))
        for activity in self.activities:
            for who in agents:
                self._relate_once(document.wasAssociatedWith, ProvAssociation, activity, who)
        if agent and organisation:
            self._relate_once(document.actedOnBehalfOf, ProvDelegation, agents[1], agents[2])

    def _activity_of(self, attempt: Attempt) -> ProvActivity:
        """Return the activity of an attempt: the run itself for the first, unless that resumes from a checkpoint."""
        run = self.activities[0]
        if self.number == 1 and attempt.resumed_from is None:
            return run
        kind = "Attempt" if attempt.resumed_from is None else "Resumption"
        ended = None if attempt.ended is None else moment(attempt.ended)
        attributes = [("prov:type", self._type(kind)), ("itwinai:status", attempt.status)]
        activity = self.document.activity(
            f"run:attempt-{self.number}", moment(attempt.began), ended, attributes + facts_of_activity(attempt.facts)
        )
        self.document.wasInformedBy(activity, run)
        self.activities.append(activity)
        return activity

    def _data(self, attempt: Attempt) -> ProvEntity | None:
        if not attempt.data:
            return None
        settings = settings_of({name: value for name, value in attempt.data.items() if name != "class"})
        known = [("itwinai:class", attempt.data["class"])] if "class" in attempt.data else []
        return self._entity(f"data-{self.number}", "Data", known + settings)

    def _config(self, attempt: Attempt) -> ProvEntity | None:
        if not attempt.hyperparameters:
            return None
        return self._entity(f"config-{self.number}", "Configuration", settings_of(attempt.hyperparameters))

    def _metric(self, name: str, metric: Metric) -> ProvEntity:
        attributes: list[tuple[str, Any]] = [
            ("prov:label", name),
            ("prov:value", metric.value),
            ("itwinai:step", metric.step),
            ("itwinai:time", moment(metric.time)),
            ("itwinai:points", metric.points),
        ]
        return self._entity(f"metric-{self.number}/{local_name(name)}", "Metric", attributes)

    def _checkpoint(self, checkpoint: SavedCheckpoint, number: int) -> ProvEntity:
        """Return the entity of a checkpoint: that of the attempt that has written it, or else a new one."""
        path = without_secrets(checkpoint.path if checkpoint.is_remote else os.path.abspath(checkpoint.path))
        if number == 0 and path in self.checkpoints:
            return self.checkpoints[path]
        attributes: list[tuple[str, Any]] = [("itwinai:path", path), ("itwinai:size", checkpoint.size)]
        if checkpoint.role:
            attributes.append(("itwinai:role", checkpoint.role))
        if (manifest := checkpoint.manifest) is not None:
            attributes += [("itwinai:contentSha256", manifest.sha256), ("itwinai:written", moment(manifest.written_at))]
            names = ("epoch", "global_step", "strategy", "world_size", "parameters")
            attributes += [(f"itwinai:{name}", manifest.about.get(name)) for name in names]
        first = name = f"checkpoint-{number}/{local_name(os.path.basename(path))}"
        count = 1
        while self.document.get_record(f"run:{name}"):  # one of this name in another folder
            count += 1
            name = f"{first}-{count}"
        self.checkpoints[path] = entity = self._entity(name, "Checkpoint", attributes)
        return entity

    def _entity(self, name: str, kind: str, attributes: list[tuple[str, Any]]) -> ProvEntity:
        return self.document.entity(f"run:{name}", [("prov:type", self._type(kind)), *attributes])

    def _agent(self, identifier: Any, kind: Any, label: str) -> Any:
        found = self.document.get_record(identifier)
        return found[0] if found else self.document.agent(identifier, [("prov:type", kind), ("prov:label", label)])

    def _relate_once(self, relate: Any, kind: type, first: Any, second: Any) -> None:
        """Add a relation, unless an earlier document has brought it."""
        ends = [first.identifier, second.identifier]
        for record in self.document.get_records(kind):
            if [value for _, value in record.formal_attributes[:2]] == ends:
                return
        relate(first, second)

    def _identifier(self, given: str, kind: str) -> Any:
        """Return the name of an agent: the address itself, with a prefix for what is before its last part."""
        if "://" not in given:
            return self.document.valid_qualified_name(f"run:{kind}-{local_name(given)}")
        space, _, local = given.rstrip("/").rpartition("/")
        prefix = _KNOWN_REGISTRIES.get(urlparse(given).netloc, kind)
        return self.document.add_namespace(prefix, f"{space}/")[local_name(local)]

    def _type(self, name: str) -> Any:
        return self.document.valid_qualified_name(f"itwinai:{name}")
