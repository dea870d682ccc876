"""Every attack here must leave a log without tracebacks, in lines that are safe to show."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


class Log(logging.Handler):
    """Collects what is logged.

    Attributes:
        records: all records, debug ones too.
        allow_tracebacks: the test makes the application itself fail, which is logged with its traceback.
    """

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []
        self.allow_tracebacks = False

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def lines(self, level: int = logging.DEBUG) -> list[str]:
        return [record.getMessage() for record in self.records if record.levelno >= level]


@pytest.fixture(autouse=True)
def log() -> Iterator[Log]:
    handler = Log()
    logger = logging.getLogger()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    for record in handler.records:
        message = record.getMessage()
        assert message.isprintable(), f"a log line has control characters: {message!r}"
        assert len(message) < 1000
        assert record.exc_info is None or handler.allow_tracebacks, record.exc_info
