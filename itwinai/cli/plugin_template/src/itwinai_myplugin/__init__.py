"""A module, its data, a callback and a command for itwinai."""
