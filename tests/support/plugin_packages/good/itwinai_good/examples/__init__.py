"""Begin with `itwinai greet`; configs are in tiny."""
