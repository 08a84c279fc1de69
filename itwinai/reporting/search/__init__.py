"""The report of a search: which trial is best, what that depends on, what to do next."""
