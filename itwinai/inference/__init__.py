"""What a `Predictor` is made of: where models are loaded from, rows of nested values, batches of several callers."""
