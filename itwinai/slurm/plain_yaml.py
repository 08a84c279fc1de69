"""YAML in which `12:00:00` is a time as SLURM writes it, and not a number."""

from __future__ import annotations

import re
from typing import Any

import yaml

_NOT_TEXT = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"}


class _Loader(yaml.SafeLoader):
    """PyYAML follows YAML 1.1, where numbers with colons are to the base 60: 12:00:00 would be 43200."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NOT_TEXT]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))


def load_plain(text: str) -> Any:
    """Return the values of a document.

    Args:
        text: the document. Of numbers only whole ones are read as numbers; times, dates and fractions are texts.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    return yaml.load(text, _Loader)
