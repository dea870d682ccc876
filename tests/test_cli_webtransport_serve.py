"""`trio-wt serve` over HTTP/3: echoes, the page, certificates, and the end."""

from __future__ import annotations

import base64
import hashlib
import http.client
import re
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

import trio_wt
from trio_wt._cli.certificate import make_certificate
from trio_wt.cli import main

from .cli_tools import Process, fails, one_line, run
from .test_cli_serve import Serve, echoes


class ServeBoth(Serve):
    """A server, once it listens, and what it says of itself."""

    def __init__(self, *arguments: str) -> None:
        super().__init__(*arguments)
        self.told: dict[str, str] = {}
        while "page for browsers" not in self.told:
            line = self.line()
            if line.startswith("listening on https"):
                self.told["https"] = line.removeprefix("listening on ").split()[0]
            else:
                name, _, value = line.partition(": ")
                self.told[name] = value
        self.https = self.told["https"]
        self.page = self.told["page for browsers"]

    @property
    def digest(self) -> bytes:
        return bytes.fromhex(self.told["certificate's SHA-256"].replace(":", ""))

    @property
    def tls(self) -> trio_wt.ClientTLS:
        return trio_wt.ClientTLS(server_certificate_hashes=[self.digest])


@asynccontextmanager
async def visiting(server: ServeBoth, **more: Any) -> AsyncIterator[trio_wt.WebTransportSession]:
    async with trio_wt.open_webtransport(server.https, tls=server.tls, **more) as session:
        yield session


def get(server: ServeBoth, path: str) -> tuple[int, str | None, str]:
    """By TCP."""
    connection: http.client.HTTPConnection
    if server.page.startswith("https"):
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, context=context)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    with closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.getheader("content-type"), response.read().decode()


# ---- what it serves


def test_what_it_says_of_itself() -> None:
    with ServeBoth() as server:
        port = server.port
        assert server.url == f"ws://127.0.0.1:{port}/"
        assert server.https == f"https://127.0.0.1:{port}/"
        assert server.page == f"http://127.0.0.1:{port}/"
        assert base64.b64decode(server.told["in base64"]) == server.digest


@pytest.mark.real_clock
async def test_it_echoes() -> None:
    with ServeBoth() as server:
        async with visiting(server) as session:
            for data in (b"", b"text", bytes(2**20)):
                async with session.open_stream() as stream:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(partial(stream.send_all, data, eof=True))
                        assert await stream.receive_all() == data
            async with session.open_send_stream() as sending:
                await sending.send_all(b"one way")
            async with await session.incoming_receive_streams.receive() as receiving:
                assert await receiving.receive_all() == b"one way"
            await session.datagrams.send(b"once")
            assert await session.datagrams.receive() == b"once"
            assert (await _reset_by_us(session, 77)).code == 77
            # What does not fit the way back is dropped, and no harm.
            await session.datagrams.send(bytes(session.datagrams.max_size))
        server.signal(signal.SIGTERM)
        assert await trio.to_thread.run_sync(server.wait) == 0
        assert server.errors() == ""


async def _reset_by_us(session: trio_wt.WebTransportSession, code: int) -> trio_wt.StreamReset:
    """What comes back of a stream that is reset."""
    async with session.open_stream() as stream:
        await stream.send_all(b"x")
        assert await stream.receive_some() == b"x"
        stream.reset(code)
        with pytest.raises(trio_wt.StreamReset) as caught:
            await stream.receive_some()
    return caught.value


@pytest.mark.real_clock
async def test_one_connection_for_everything() -> None:
    with ServeBoth("--max-size", "100") as server:
        async with trio_wt.open_webtransport_connection(server.https, tls=server.tls) as connection:
            response = await connection.request("GET", "/health")
            assert (response.status, response.body) == (200, b"ok\n")
            response = await connection.request("GET", "/")
            assert response.status == 200
            assert response.headers["content-type"] == "text/html; charset=utf-8"
            assert response.body.decode() == get(server, "/")[2]
            assert (await connection.request("HEAD", "/")).body == b""
            assert (await connection.request("POST", "/")).status == 405
            assert (await connection.request("GET", "/nowhere")).status == 404
            async with connection.open_session("/") as one, connection.open_session("/echo") as two:
                for session in (one, two):
                    await session.datagrams.send(b"x")
                    assert await session.datagrams.receive() == b"x"
            async with connection.open_websocket("/") as ws:
                await ws.send("x" * 100)
                assert await ws.receive() == "x" * 100
                await ws.send("x" * 101)
                with pytest.raises(trio_wt.ConnectionClosedError):
                    await ws.receive()
                assert ws.close_code == 1009


def test_the_page_knows_the_certificate() -> None:
    with ServeBoth() as server:
        status, kind, page = get(server, "/")
        assert (status, kind) == (200, "text/html; charset=utf-8")
        settings = re.search(r"^const SETTINGS = (.*);$", page, re.M)
        assert settings is not None
        assert settings[1] == f'{{"hash": "{server.told["in base64"]}", "ipv4": true}}'
        assert get(server, "/?x")[0] == 200
        assert get(server, "/other")[0] == 404


@pytest.mark.real_clock
async def test_origins() -> None:
    with ServeBoth("--allow-origin", "https://a.example") as server:
        async with visiting(server, origin="https://a.example"):
            pass
        with pytest.raises(trio_wt.Rejected) as caught:
            async with visiting(server, origin=server.page.rstrip("/")):
                pass
        assert caught.value.status == 403
    with ServeBoth() as server:
        async with visiting(server, origin=server.page.rstrip("/")):
            pass


def test_its_own_client() -> None:
    with ServeBoth() as server:
        target = ("--server-certificate-hash", server.told["in base64"], server.https)
        done = run("connect", "--linger", "0.3", *target, data=b"hello\n")
        assert (done.returncode, done.stdout) == (0, b"stream 4: hello\n")


# ---- certificates


def test_one_certificate_for_both(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["cert", "--out", str(tmp_path)])
    certificate, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    for arguments in (("--cert", certificate, "--key", key), ("--self-signed",)):
        with ServeBoth(*arguments) as server:
            assert server.url.startswith("wss://")
            assert server.page == f"https://127.0.0.1:{server.port}/"
            assert server.told["in base64"] in get(server, "/")[2]
            der = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", server.port)))
            assert hashlib.sha256(der).digest() == server.digest
            trusted = ("--cafile", certificate) if "--cert" in arguments else ("--insecure",)
            done = run("connect", "--linger", "0.3", *trusted, server.https, data=b"x\n")
            assert done.stdout == b"stream 4: x\n"


def test_a_certificate_that_browsers_know_by_its_authority(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    both, ca = tmp_path / "both.pem", tmp_path / "ca.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(str(both))
    authority.cert_pem.write_to_path(str(ca))
    with ServeBoth("--cert", str(both)) as server:
        assert "in base64" not in server.told
        assert '"hash": null' in get(server, "/")[2]
        done = run("connect", "--linger", "0.3", "--cafile", str(ca), server.https, data=b"x\n")
        assert done.stdout == b"stream 4: x\n"


def test_a_key_that_quic_has_no_use_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    made = x509.load_pem_x509_certificate(make_certificate().certificate)
    key = ec.generate_private_key(ec.SECP521R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(made.subject)
        .issuer_name(made.issuer)
        .public_key(key.public_key())
        .serial_number(made.serial_number)
        .not_valid_before(made.not_valid_before_utc)
        .not_valid_after(made.not_valid_after_utc)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "both.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    message = fails(capsys, "serve", "--port", "0", "--cert", str(path))
    assert "use P-256 or P-384" in message
    assert message.endswith("(--no-webtransport does without QUIC)")
    with Serve("--no-webtransport", "--cert", str(path)) as server:
        assert server.url.startswith("wss://")
        assert echoes("--insecure", server.url).count("\n") == 1
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert server.errors() == ""


# ---- ports


def test_without_webtransport() -> None:
    with Serve("--no-webtransport") as server:
        with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)) as http_:
            http_.request("GET", "/")
            assert http_.getresponse().status == 426
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            sock.bind(("127.0.0.1", server.port))  # it is free
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert server.popen.stdout is not None
        assert server.popen.stdout.read() == b""


def test_a_udp_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.bind(("127.0.0.1", 0))
        port = str(sock.getsockname()[1])
        message = fails(capsys, "serve", "--port", port)
    assert message == (
        f"cannot listen on UDP port {port} of 127.0.0.1 for WebTransport: Address already in use "
        "(--no-webtransport does without)"
    )


def test_both_addresses_of_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    with ServeBoth("--host", "localhost") as server:
        assert server.page in {f"http://127.0.0.1:{server.port}/", f"http://[::1]:{server.port}/"}
    message = fails(capsys, "serve", "--host", "192.0.2.1", "--port", "0")
    assert message.startswith("cannot listen on UDP port 0 of 192.0.2.1 for WebTransport: ")


def test_an_address_that_stands_for_all_is_none_to_visit() -> None:
    with ServeBoth("--host", "0.0.0.0") as server:
        assert server.url == f"ws://0.0.0.0:{server.port}/"
        assert server.page == f"http://127.0.0.1:{server.port}/"
    if socket.has_ipv6:
        with ServeBoth("--host", "::1") as server:
            assert server.page == f"http://[::1]:{server.port}/"


# ---- the end


@pytest.mark.real_clock
async def test_it_stops_with_its_sessions() -> None:
    with ServeBoth() as server:
        async with visiting(server) as session:
            async with session.open_stream() as stream:
                await stream.send_all(b"under way")
                assert await stream.receive_some() == b"under way"
                server.signal(signal.SIGINT)
                await session.wait_draining()
                # What has begun may come to its end.
                await stream.send_all(b", still", eof=True)
                assert await stream.receive_all() == b", still"
            end = await session.wait_closed()
            assert isinstance(end, trio_wt.ConnectionClosedOK)
            assert (end.code, end.reason) == (0, "")
        assert await trio.to_thread.run_sync(server.wait) == 0
        assert server.errors() == ""


@pytest.mark.real_clock
async def test_a_stream_that_never_ends_does_not_hold_it() -> None:
    with ServeBoth("--grace", "0.4") as server:
        async with visiting(server) as session, session.open_stream() as stream:
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"
            begin = trio.current_time()
            server.signal(signal.SIGTERM)
            await session.wait_closed()
        assert await trio.to_thread.run_sync(server.wait) == 0
        assert trio.current_time() - begin < 4
        assert server.errors() == ""


def test_a_client_that_is_killed_leaves_no_trace() -> None:
    with ServeBoth() as server:
        target = ("--server-certificate-hash", server.told["in base64"], server.https)
        with Process("connect", *target) as client:
            client.write(b"x\n")
            assert client.line() == "stream 4: x"
        for code in ("0", "42"):
            with Process("connect", *target) as client:
                client.write(b"x\n")
                client.line()
                if code == "42":
                    client.signal(signal.SIGTERM)
                client.end_input()
                client.wait()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert server.errors() == ""


def test_mistakes_are_one_line() -> None:
    done = run("serve", "--cert", __file__)
    assert done.returncode == 1
    assert "no certificate and key in PEM form" in one_line(done.stderr)
