"""Predict droughts from gridded weather: `itwinai drought --help`; configs: examples/drought/configs of the repository.

A network learns a hydrological model's soil moisture, evaporation and runoff from weather and static maps.
"""
