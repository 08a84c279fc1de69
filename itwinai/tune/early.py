"""What can be said to be wrong before anything heavy is imported."""

from __future__ import annotations

from itwinai.tune.schedulers import SCHEDULERS
from itwinai.tune.searchers import SEARCHERS, named_options
from itwinai.tune.settings import Settings
from itwinai.tune.space import SearchSpace


def check_names(settings: Settings) -> None:
    """Raise an error if the space has distributions that do not exist, or the searcher or scheduler does not.

    Args:
        settings: of a search.

    Raises:
        ConfigurationError: that is so.
    """
    SearchSpace.from_mapping(settings.space)
    named_options(settings.search, "random", SEARCHERS, "searcher")
    named_options(settings.scheduler, "fifo", SCHEDULERS, "scheduler")
