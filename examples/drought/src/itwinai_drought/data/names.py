"""What variables and dimensions are called in the stores of others."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from itwinai.errors import ConfigurationError, did_you_mean

# Hython's short names, and the standard names that Wflow 1.0 uses for the same quantities.
WFLOW_STANDARD_NAMES: Mapping[str, str] = {
    "precip": "atmosphere_water__precipitation_volume_flux",
    "pet": "land_surface_water__potential_evaporation_volume_flux",
    "temp": "atmosphere_air__temperature",
    "thetaS": "soil_water__saturated_volume_fraction",
    "thetaR": "soil_water__residual_volume_fraction",
    "KsatVer": "soil_surface_water__vertical_saturated_hydraulic_conductivity",
    "c": "soil_layer_water__brooks_corey_exponent",
    "elevation": "land_surface__elevation",
    "vwc": "soil_layer_water__volume_fraction",
    "actevap": "land_surface__evapotranspiration_volume_flux",
    "q": "soil_surface_water__net_runoff_volume_flux",
}

DIMENSIONS: Mapping[str, tuple[str, ...]] = {
    "time": ("time",),
    "lat": ("lat", "latitude", "y"),
    "lon": ("lon", "longitude", "x"),
}


def find_variable(name: str, there: Collection[str], names: Mapping[str, str]) -> str:
    """Return what a variable is called in a store.

    Args:
        name: the name that the config uses, such as ``precip``.
        there: the variables of the store.
        names: the user's own names for variables of the store, by the config's names; they come first, then the name
            itself, then Wflow's standard name.

    Raises:
        ConfigurationError: the store has none of them.
    """
    candidates = [names[name]] if name in names else [name, WFLOW_STANDARD_NAMES.get(name, name)]
    for candidate in candidates:
        if candidate in there:
            return candidate
    tried = " or ".join(f"'{one}'" for one in dict.fromkeys(candidates))
    raise ConfigurationError(
        f"The store has no variable {tried}.{did_you_mean(candidates[0], there)} It has {', '.join(sorted(there))}. "
        f"Say what it is called with names: {{{name}: ...}}."
    )


def find_dimension(name: str, there: Collection[str]) -> str | None:
    """Return what ``time``, ``lat`` or ``lon`` is called among dimensions; None if it is not there."""
    return next((one for one in DIMENSIONS[name] if one in there), None)
