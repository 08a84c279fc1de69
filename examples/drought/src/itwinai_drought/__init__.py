"""Predict droughts: a network that learns a hydrological model from gridded weather and static maps."""
