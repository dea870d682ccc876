"""qlog traces that stay within a bound."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from typing import Any, Final

from aioquic.quic.logger import QLOG_VERSION, QuicFileLogger, QuicLogger, QuicLoggerTrace

__all__ = ["BoundedFileLogger"]

logger = logging.getLogger("trio_wt.quic")

_MAX_EVENTS: Final = 100_000


class _BoundedTrace(QuicLoggerTrace):
    def __init__(self, *, is_client: bool, odcid: bytes) -> None:
        super().__init__(is_client=is_client, odcid=odcid)
        # A trace is written when its connection ends; until then only the latest events are kept.
        self._events: deque[dict[str, Any]] = deque(maxlen=_MAX_EVENTS)


class BoundedFileLogger(QuicFileLogger):
    """Writes a file per connection into a folder, with the last 100,000 events of each.

    Args:
        path: the folder. What cannot be written there is lost, which the log says.
    """

    def __init__(self, path: str) -> None:
        QuicLogger.__init__(self)
        self.path = path

    def start_trace(self, is_client: bool, odcid: bytes) -> QuicLoggerTrace:
        """Begin the trace of a connection."""
        trace = _BoundedTrace(is_client=is_client, odcid=odcid)
        self._traces.append(trace)
        return trace

    def end_trace(self, trace: QuicLoggerTrace) -> None:
        """Write a trace; its name tells the role, as both ends may log into one folder."""
        content = trace.to_dict()
        name = f"{content['common_fields']['ODCID']}_{content['vantage_point']['type']}.qlog"
        self._traces.remove(trace)
        document = {"qlog_format": "JSON", "qlog_version": QLOG_VERSION, "traces": [content]}
        try:
            with open(os.path.join(self.path, name), "w", encoding="utf-8") as file:
                json.dump(document, file)
        except OSError as exc:
            # A full disk must not end connections.
            logger.warning("a qlog file could not be written: %s", exc)
