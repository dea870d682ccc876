"""A connection's settings."""

from __future__ import annotations

import dataclasses

import pytest

from trio_wt import Deflate, Extension, Settings
from trio_wt._websocket.settings import DEFAULTS, SettingsKwargs

NUMBERS = [
    "max_message_size",
    "max_fragments",
    "max_queue_messages",
    "max_queue_bytes",
    "write_limit",
    "ping_interval",
    "ping_timeout",
    "close_timeout",
]


def test_the_defaults_are_the_documented_ones() -> None:
    assert DEFAULTS == Settings()
    assert dataclasses.asdict(DEFAULTS) == {
        "compression": dataclasses.asdict(Deflate()),
        "extensions": (),
        "max_message_size": 2**20,
        "max_fragments": 65536,
        "max_queue_messages": 16,
        "max_queue_bytes": 2**20,
        "write_limit": 65536,
        "ping_interval": 20,
        "ping_timeout": 20,
        "close_timeout": 5,
        "cancel_on_close": False,
    }


def test_keyword_arguments_are_the_settings() -> None:
    fields = [field.name for field in dataclasses.fields(Settings)]
    assert list(SettingsKwargs.__annotations__) == fields


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [0, -1, -0.5, float("nan")])
def test_limits_and_times_are_positive(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be greater than 0, and is {value}"):
        Settings(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NUMBERS)
def test_the_smallest_values_are_fine(name: str) -> None:
    assert getattr(Settings(**{name: 1}), name) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["max_message_size", "ping_interval", "ping_timeout"])
def test_some_limits_may_be_off(name: str) -> None:
    assert getattr(Settings(**{name: None}), name) is None  # type: ignore[arg-type]


def test_settings_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULTS.close_timeout = 1  # type: ignore[misc]


def test_compression_comes_before_further_extensions() -> None:
    class Other(Deflate):
        name = "other"

    other: Extension = Other()
    assert [e.name for e in DEFAULTS.all_extensions()] == ["permessage-deflate"]
    both = Settings(extensions=[other]).all_extensions()
    assert [e.name for e in both] == ["permessage-deflate", "other"]
    assert Settings(compression=None, extensions=[other]).all_extensions() == [other]
    assert Settings(compression=None).all_extensions() == []
