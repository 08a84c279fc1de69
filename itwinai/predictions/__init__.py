"""Predictions on disk: shards that the workers write as they go, and the file that they are joined into."""
