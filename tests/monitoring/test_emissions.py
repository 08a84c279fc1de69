"""Emissions are codecarbon's factor of a country times the energy; nothing is asked of the network for it."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from itwinai.errors import ConfigurationError, MissingPackageError
from itwinai.monitoring import emissions


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError(f"asked the network: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_country() -> None:
    germany, france = (emissions.estimate(3.6e6, code) for code in ("DEU", "FRA"))
    assert germany.kilowatt_hours == 1.0
    assert germany.place == "Germany"
    assert 0.2 < germany.kilograms < 0.6
    assert france.kilograms < germany.kilograms / 3  # mostly nuclear power
    assert germany.grams_per_kilowatt_hour == pytest.approx(1000 * germany.kilograms)
    assert germany.source.startswith("codecarbon ") and "data of 20" in germany.source
    assert emissions.estimate(7.2e6, "DEU").kilograms == pytest.approx(2 * germany.kilograms)


def test_world() -> None:
    world = emissions.estimate(3.6e6, None)
    assert world.place == "average of the world"
    assert 0.4 < world.kilograms < 0.6
    without_data = emissions.estimate(3.6e6, "VAT")
    assert without_data.kilograms == world.kilograms
    assert without_data.place == "average of the world, as there are no data of VAT"


@pytest.mark.parametrize("code", ["DE", "deu", "Germany", "", "QQQ", 276, "DEU "])
def test_code_that_is_none(code: Any) -> None:
    with pytest.raises(ConfigurationError, match="ISO 3166 alpha-3"):
        emissions.check_country(code)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"codecarbon.*itwinai\[watch\]"):
        emissions.estimate(1.0, None)
