"""Logs: traces of connections, and their secrets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.quic_engines import (
    Link,
    client_config,
)
from trio_wt._protocol.quic import (
    Engine,
    qlog,
)
from trio_wt._protocol.route import Route


def test_a_log_is_written_at_the_end(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("client", "server")}
    for folder in folders.values():
        folder.mkdir()
    link = Link(
        client={"qlog_dir": str(folders["client"])}, server={"qlog_dir": str(folders["server"])}
    )
    stream_id = link.client.open()
    link.transfer(link.client, stream_id, bytes(10_000))
    assert not list(tmp_path.glob("*/*"))
    link.client.shut(0)
    link.run(1)
    for side in link.sides:
        side.engine.finish()
        side.engine.finish()
    for name, folder in folders.items():
        (path,) = folder.iterdir()
        (trace,) = json.loads(path.read_text())["traces"]
        assert trace["vantage_point"]["type"] == name
        names = {event["name"] for event in trace["events"]}
        assert {"transport:packet_sent", "transport:packet_received"} <= names


def test_only_the_latest_of_a_log_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert qlog._MAX_EVENTS == 100_000
    monkeypatch.setattr(qlog, "_MAX_EVENTS", 10)
    logger = qlog.BoundedFileLogger(str(tmp_path))
    trace = logger.start_trace(is_client=True, odcid=b"12345678")
    for number in range(25):
        trace.log_event(category="test", event=str(number), data={})
    logger.end_trace(trace)
    assert not logger._traces
    (path,) = tmp_path.iterdir()
    events = json.loads(path.read_text())["traces"][0]["events"]
    assert [event["name"] for event in events] == [f"test:{number}" for number in range(15, 25)]


def test_both_ends_may_log_into_one_folder(tmp_path: Path) -> None:
    link = Link(qlog_dir=str(tmp_path))
    link.client.shut(0)
    link.run(1)
    for side in link.sides:
        side.engine.finish()
    cid = link.client.engine.original_destination_connection_id.hex()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{cid}_client.qlog", f"{cid}_server.qlog"}


def test_a_log_that_cannot_be_written_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(client_config(qlog_dir=str(tmp_path / "nowhere")))
    engine.start(Route(("192.0.2.1", 1)), 0.0)
    engine.finish()
    assert "could not be written" in caplog.text


def test_secrets_are_logged(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    with path.open("w") as keylog:
        Link(client={"keylog": keylog})
    labels = {line.split()[0] for line in path.read_text().splitlines()}
    assert {"CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0"} <= labels
