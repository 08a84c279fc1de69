"""The greenhouse gases behind an amount of electric energy, from the data of codecarbon; without any network."""

from __future__ import annotations

import re
from dataclasses import dataclass

from itwinai.errors import ConfigurationError

INSTALL = "Install it with `pip install 'itwinai[watch]'`."

_CODE = re.compile(r"[A-Z]{3}")


@dataclass(frozen=True)
class Emissions:
    """An estimate of what an amount of energy has emitted.

    Attributes:
        kilograms: of CO2 equivalents.
        kilowatt_hours: the energy.
        place: whose electricity it was taken to be.
        source: where the factor comes from.
    """

    kilograms: float
    kilowatt_hours: float
    place: str
    source: str

    @property
    def grams_per_kilowatt_hour(self) -> float:
        """The factor between both."""
        return 1000 * self.kilograms / self.kilowatt_hours


def check_country(code: str) -> None:
    """Check that a text is the code of a country.

    Args:
        code: ISO 3166 alpha-3, like ``"DEU"``.

    Raises:
        ConfigurationError: it is not.
    """
    known = isinstance(code, str) and _CODE.fullmatch(code) is not None
    if known:
        try:
            import pycountry  # codecarbon needs it as well
        except ImportError:
            return
        known = pycountry.countries.get(alpha_3=code) is not None
    if not known:
        raise ConfigurationError(
            f"country={code!r} is not a country: give its code of three capital letters (ISO 3166 alpha-3), such as "
            "'DEU', 'FRA' or 'USA', or None for the average of the world."
        )


def estimate(joules: float, country: str | None) -> Emissions:
    """Return what an amount of electric energy has emitted.

    The factor is codecarbon's: the carbon intensity of the electricity of a country in the year that it has data of.

    Args:
        joules: the energy.
        country: ISO 3166 alpha-3; None, or one without data, for the average of the world.

    Raises:
        MissingPackageError: codecarbon is not installed.
    """
    from itwinai.errors import require

    require("codecarbon", INSTALL, "An estimate of CO2")
    from codecarbon import __version__
    from codecarbon.core.emissions import Emissions as Estimator
    from codecarbon.core.units import Energy
    from codecarbon.external.geography import GeoMetadata
    from codecarbon.input import DataSource

    data = DataSource()
    kilowatt_hours = joules / 3.6e6
    known = data.get_global_energy_mix_data().get(country)
    source = f"codecarbon {__version__}"
    if country is None or known is None:
        per_source = data.get_carbon_intensity_per_source_data()
        kilograms = kilowatt_hours * per_source["world_average"] / 1000
        place = (
            "average of the world" if country is None else f"average of the world, as there are no data of {country}"
        )
        return Emissions(kilograms, kilowatt_hours, place, f"{source}, {per_source['world_average_source']}")
    kilograms = Estimator(data).get_country_emissions(Energy.from_energy(kilowatt_hours), GeoMetadata(country))
    return Emissions(kilograms, kilowatt_hours, known["country_name"], f"{source}, data of {known['year']}")
