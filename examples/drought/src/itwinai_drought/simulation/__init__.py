"""An invented region: its maps, its weather, and a hydrological model that says what the water does.

`RandomField` draws what varies in space, `Landscape` the maps and `WeatherGenerator` the days; `HydrologicalModel`
computes, and `write_store` runs them block by block.
"""
