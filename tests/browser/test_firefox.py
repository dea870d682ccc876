"""Firefox at our server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.firefox import Firefox, find
from tests.browser.scenarios import Scenarios

pytestmark = [
    pytest.mark.real_clock,
    pytest.mark.skipif(find() is None, reason="Firefox is not installed"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Firefox]:
    firefox = Firefox()
    yield firefox
    firefox.close()


class TestWebTransport(Scenarios):
    """What Firefox 153 does not do is tested with Chromium alone.

    It knows no subprotocols. It never sends STOP_SENDING, and one direction's end takes the other with it. A page that was left has
    its sessions open until its memory is freed. Unidirectional streams that wait for the server's limit are not resumed by MAX_STREAMS.
    """
