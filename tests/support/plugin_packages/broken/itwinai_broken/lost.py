import itwinai_nowhere  # noqa: F401
