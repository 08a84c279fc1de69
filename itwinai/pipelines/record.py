"""What is kept of a step that has ended, in its folder, and the lock file of all steps."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from itwinai.io.atomic import PART, remove_parts, write_whole
from itwinai.io.versioned_json import document_text, versioned
from itwinai.pipelines.content_hash import ContentHasher
from itwinai.pipelines.fingerprint import Fingerprint
from itwinai.pipelines.outputs import content_of, decode, digest_of_values, missing_in

RECORD, REQUEST = "step.json", ".request.json"
LOCK_FILE = "pipeline.lock.yaml"
_VERSION = 1


@dataclass(frozen=True)
class StepRecord:
    """What is kept of a step that has ended.

    Attributes:
        step: its name.
        fingerprint: what its result depends on.
        outputs: what it has returned, as `itwinai.pipelines.outputs.encode` has it.
        content: the same, with the content of files in the place of paths.
        files: digest of its folder.
        ended: when, as ISO time.
        seconds: that it took.
        was_absent: paths among its arguments at which there was nothing before: the step has written them.
    """

    step: str
    fingerprint: Fingerprint
    outputs: Any
    content: Any
    files: str
    ended: str
    seconds: float
    was_absent: Mapping[str, str]

    def write(self, folder: Path) -> None:
        """Write it into a folder."""
        write_whole(folder / RECORD, document_text({"version": _VERSION, **asdict(self)}))

    @classmethod
    def read(cls, folder: Path) -> StepRecord | None:
        """Return the record in a folder; None if there is none, or one of another version of itwinai."""
        try:
            plain = versioned((folder / RECORD).read_text(encoding="utf-8"), _VERSION, RECORD)
            return cls(**{**plain, "fingerprint": Fingerprint(**plain["fingerprint"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def damage(self, folder: Path, hasher: ContentHasher) -> str:
        """Return what is wrong with its outputs, in a few words; nothing if they are as they were."""
        if missing := missing_in(self.outputs, folder, hasher):
            return f"its output {shown(missing[0])} is gone"
        if hasher.digest(folder, RECORD) != self.files:
            return f"files in {shown(folder)} were changed"
        if content_of(self.outputs, folder, hasher, RECORD) != self.content:
            return "its output outside of its folder was changed"
        changed = [path for path, digest in self.was_absent.items() if hasher.digest(Path(path)) != digest]
        if not changed:
            return ""
        return f"its output {changed[0]} {'was changed' if Path(changed[0]).exists() else 'is gone'}"


@dataclass(frozen=True)
class RunFolder:
    """The folder of a pipeline: a folder of each step, whole or absent, and what is kept of all.

    Attributes:
        path: of the folder.
    """

    path: Path

    def of(self, step: str) -> Path:
        """Return the folder of a step, which has its outputs."""
        return self.path / step

    def part_of(self, step: str, fingerprint: Fingerprint) -> Path:
        """Return the folder in which a step works before it has ended."""
        return self.path / f"{PART}{step}.{fingerprint.digest[:12]}"

    @property
    def cache(self) -> Path:
        """The file of the digests of files."""
        return self.path / ".digests.json"

    def lock_of(self, step: str) -> Path:
        """Return the file that is locked by the command that runs a step."""
        return self.path / ".locks" / step

    def log_of(self, step: str) -> Path:
        """Return the file of what a step has printed."""
        return self.path / "logs" / f"{step}.txt"

    def absent_before(self, step: str) -> set[str]:
        """Return the paths at which there was nothing before a try of a step that was interrupted."""
        found: set[str] = set()
        for path in self.path.glob(f"{PART}{step}.*/{REQUEST}"):
            with suppress(OSError, ValueError):  # it was killed while it wrote
                found |= set(json.loads(path.read_text(encoding="utf-8"))["absent"])
        return found

    def prepare(self, step: str, fingerprint: Fingerprint, keep: bool) -> Path:
        """Make the folder in which a step works, and remove those of earlier tries with other inputs.

        Args:
            step: name of the step.
            fingerprint: of the step.
            keep: whether what an interrupted try has left stays.
        """
        part = self.part_of(step, fingerprint)
        for other in self.path.glob(f"{PART}{step}.*"):
            if not (keep and other == part):
                shutil.rmtree(other)
        remove_parts(self.path)
        part.mkdir(parents=True, exist_ok=True)
        return part

    def publish(self, step: str, part: Path) -> None:
        """Let the folder in which a step has worked appear under its name."""
        final = self.of(step)
        if final.exists():
            old = self.path / f"{PART}{step}.old"
            os.rename(final, old)
            os.rename(part, final)
            shutil.rmtree(old)
        else:
            os.rename(part, final)

    def write_lock(self, order: Mapping[str, Any]) -> None:
        """Write the lock file: of each step the record.

        Args:
            order: steps, in the order of the file.
        """
        import yaml

        plain: dict[str, Any] = {}
        for name in order:
            record = StepRecord.read(self.of(name))
            if record is not None:
                values = json.loads(document_text(asdict(record)))
                about = {key: values[key] for key in ("ended", "seconds")}
                plain[name] = {**about, **values["fingerprint"], "outputs": values["content"]}
        text = "# Written by itwinai run: what each step was last run with.\n"
        write_whole(self.path / LOCK_FILE, text + yaml.safe_dump({"steps": plain}, sort_keys=False, width=100))


def output_digest(content: Any) -> str:
    """Return the digest of an output, as `StepRecord.content` has it."""
    return digest_of_values(content)


def decoded(record: StepRecord, folder: Path) -> Any:
    """Return what a step has returned, with paths."""
    return decode(record.outputs, folder)


def shown(path: Path | str) -> str:
    """Return a path relative to the current folder, if it is in it."""
    path = Path(path)
    return str(path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path)
