"""Certificates that are renewed while sessions go on, and certificates for TCP and QUIC from one place."""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import logging
import os
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.certificates import DAY, NOW, Made, make, make_ca
from trio_wt import (
    Certificate,
    ClientTLS,
    HandshakeFailed,
    ServerTLS,
    WebSocket,
    WebTransportSession,
    open_websocket,
    open_webtransport,
)
from trio_wt.app import App, ReloadingTLS, Serving
from trio_wt.app._certificates import context_source, lasting

real = pytest.mark.real_clock
CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)


def write(folder: Path, made: Made, *, key: bytes | None = None) -> tuple[Path, Path]:
    """A certificate and its key, each put in the place of what was there, as those who renew do it."""
    found = []
    for name, content in (("cert.pem", made.pem), ("key.pem", key or made.key_pem)):
        fresh, file = folder / f"{name}.new", folder / name
        fresh.write_bytes(content)
        fresh.replace(file)
        found.append(file)
    return found[0], found[1]


def digest(made: Made) -> bytes:
    return Certificate.from_pem(made.pem, made.key_pem).sha256


def ssl_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def shown_over_tcp(serving: Serving, context: ssl.SSLContext | None = None) -> bytes:
    """The SHA-256 of the certificate."""
    stream = await trio.open_ssl_over_tcp_stream(
        "127.0.0.1", serving.port, ssl_context=context or ssl_context(), https_compatible=True
    )
    async with stream:
        await stream.do_handshake()
        certificate = stream.getpeercert(binary_form=True)
        await trio.aclose_forcefully(stream)
    return hashlib.sha256(certificate).digest()


async def is_shown_over_quic(serving: Serving, made: Made) -> bool:
    tls = ClientTLS(server_certificate_hashes=[digest(made)])
    try:
        async with open_webtransport(serving.url("webtransport", "/echo"), tls=tls) as session:
            return await echoes(session)
    except HandshakeFailed:
        return False


async def echoes(session: WebSocket | WebTransportSession) -> bool:
    if isinstance(session, WebSocket):
        await session.send("hello")
        return await session.receive() == "hello"
    async with session.open_stream() as stream:
        await stream.send_all(b"hello", eof=True)
        return await stream.receive_all() == b"hello"


def echo_app() -> App:
    app = App()

    @app.session("/echo")
    async def echo(session: WebSocket | WebTransportSession) -> None:
        if isinstance(session, WebSocket):
            async for message in session:
                await session.send(message)
        else:
            async for stream in session.incoming_streams:
                async with stream:
                    await stream.send_all(await stream.receive_all())

    return app


@asynccontextmanager
async def serving(tls: Any, **options: Any) -> AsyncIterator[Serving]:
    async with trio.open_nursery() as nursery:
        served = await nursery.start(
            lambda task_status: echo_app().serve(
                "127.0.0.1", 0, tls=tls, task_status=task_status, shutdown_timeout=2, **options
            )
        )
        yield served
        served.shut_down()


@pytest.fixture(autouse=True)
def temporary(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """What is put on the disk for a moment, and must be gone again."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.rglob("*")) == []


# ---- renewed while sessions go on


@real
async def test_renewed_files_are_shown_to_new_connections_and_old_ones_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = make(), make()
    caplog.set_level(logging.INFO, logger="trio_wt.app")
    tls = ReloadingTLS(*write(tmp_path, first), interval=0)
    async with (
        serving(tls) as served,
        open_websocket(served.url("ws", "/echo"), ssl_context=ssl_context()) as websocket,
        open_webtransport(
            served.url("webtransport", "/echo"),
            tls=ClientTLS(server_certificate_hashes=[digest(first)]),
        ) as session,
    ):
        assert await shown_over_tcp(served) == digest(first)
        assert await is_shown_over_quic(served, first)
        write(tmp_path, second)
        assert await shown_over_tcp(served) == digest(second)
        assert await is_shown_over_quic(served, second)
        assert not await is_shown_over_quic(served, first)
        assert await echoes(websocket)
        assert await echoes(session)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["a new certificate has been taken up"]


@real
@pytest.mark.parametrize("what", ["half", "empty", "other key", "gone", "folder", "rubbish"])
async def test_files_that_cannot_be_used_leave_the_old_certificate(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = make(), make()
    certfile, keyfile = write(tmp_path, first)
    async with serving(ReloadingTLS(certfile, keyfile, interval=0)) as served:
        if what == "half":
            certfile.write_bytes(second.pem[: len(second.pem) // 2])
        elif what == "empty":
            keyfile.write_bytes(b"")
        elif what == "other key":
            certfile.write_bytes(second.pem)
        elif what == "gone":
            certfile.unlink()
        elif what == "folder":
            keyfile.unlink()
            keyfile.mkdir()
        else:
            certfile.write_bytes(b"\xff" * 1000)
        for _ in range(2):
            assert await shown_over_tcp(served) == digest(first)
            assert await is_shown_over_quic(served, first)
        assert "the new certificate cannot be used, the old one serves on" in caplog.text
        assert {record.levelname for record in caplog.records} == {"ERROR"}
        # Told once for each change, where there is something to look at.
        if what != "gone":
            assert len(caplog.records) == 1
        if what == "folder":
            keyfile.rmdir()
        write(tmp_path, second)
        assert await shown_over_tcp(served) == digest(second)
        assert await is_shown_over_quic(served, second)


async def test_the_files_are_not_looked_at_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make(), make()
    tls = ReloadingTLS(*write(tmp_path, first), interval=5)
    shown = tls()
    assert shown.certificate.sha256 == digest(first)
    looks = []
    real_stat = os.stat
    monkeypatch.setattr(
        os, "stat", lambda path, **kw: (looks.append(path), real_stat(path, **kw))[1]
    )
    assert tls() is shown
    write(tmp_path, second)
    assert tls() is shown
    await trio.sleep(4.9)
    assert tls() is shown
    assert looks == []
    await trio.sleep(0.2)
    assert tls().certificate.sha256 == digest(second)
    assert tls() is tls()
    assert len(looks) == 2


async def test_reload_looks_now(tmp_path: Path) -> None:
    first, second = make(), make()
    tls = ReloadingTLS(*write(tmp_path, first), interval=1000)
    assert not tls.reload()
    write(tmp_path, second)
    assert tls.reload()
    assert not tls.reload()
    assert tls().certificate.sha256 == digest(second)
    (tmp_path / "key.pem").write_bytes(b"")
    assert not tls.reload()
    assert tls().certificate.sha256 == digest(second)


async def test_files_that_may_be_read_later_only_are_taken_up_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a renewal writes them for itself, and gives them to the server's user afterwards."""
    certfile, keyfile = write(tmp_path, make("localhost"))
    tls = ReloadingTLS(certfile, keyfile)
    old = tls().certificate
    write(tmp_path, make("localhost"))
    with monkeypatch.context() as patched:

        def denied(*args: object) -> Certificate:
            raise PermissionError("not yours")

        patched.setattr(Certificate, "load", denied)
        assert not tls.reload()
    assert tls().certificate is old
    assert not tls.reload()
    time.sleep(0.02)  # for a file system that tells times coarsely
    keyfile.chmod(0o640)
    assert tls.reload()
    assert tls().certificate is not old


async def test_one_file_for_both_and_a_password(tmp_path: Path) -> None:
    first, second = make(), make()
    file = tmp_path / "both.pem"

    def put(made: Made) -> None:
        file.write_bytes(made.pem + made.encrypted_key(b"secret"))

    put(first)
    with pytest.raises(ValueError, match="is encrypted; give its password"):
        ReloadingTLS(file)
    with pytest.raises(ValueError, match="the password may be wrong"):
        ReloadingTLS(file, password="wrong")
    tls = ReloadingTLS(file, password=b"secret")
    put(second)
    assert tls.reload()
    assert tls().certificate.sha256 == digest(second)


def test_what_cannot_be_used_from_the_beginning(tmp_path: Path) -> None:
    certfile, keyfile = write(tmp_path, make())
    with pytest.raises(FileNotFoundError):
        ReloadingTLS(tmp_path / "none.pem")
    with pytest.raises(FileNotFoundError):
        ReloadingTLS(certfile, tmp_path / "none.pem")
    with pytest.raises(ValueError, match="there is no private key in it"):
        ReloadingTLS(certfile)
    with pytest.raises(ValueError, match="there is no certificate in it"):
        ReloadingTLS(keyfile)
    with pytest.raises(FileNotFoundError):
        ReloadingTLS(certfile, keyfile, client_ca=tmp_path / "none.pem")
    with pytest.raises(ValueError, match="certificate"):
        ReloadingTLS(certfile, keyfile, client_ca=b"none")
    for interval in (-1, float("nan")):
        with pytest.raises(ValueError, match="interval must be at least 0"):
            ReloadingTLS(certfile, keyfile, interval=interval)


# ---- functions of the application's


@real
@pytest.mark.parametrize(
    "wrong",
    [
        lambda made: {}["x"],
        lambda made: None,
        lambda made: ServerTLS(made, client_ca=b"none"),
        lambda made: ServerTLS(made, client_ca="/nowhere/ca.pem"),
    ],
    ids=["raises", "nothing", "no authorities", "no such file"],
)
async def test_a_function_that_fails_later_leaves_the_old_certificate(
    wrong: Callable[[Certificate], Any], caplog: pytest.LogCaptureFixture
) -> None:
    made = make()
    good = ServerTLS(Certificate.from_pem(made.pem, made.key_pem))
    fails = False

    def source() -> ServerTLS:
        return wrong(good.certificate) if fails else good

    async with serving(source) as served:
        fails = True
        assert await shown_over_tcp(served) == digest(made)
        assert await is_shown_over_quic(served, made)
        assert "the new certificate cannot be used, the old one serves on" in caplog.text
        fails = False
        caplog.clear()
        assert await shown_over_tcp(served) == digest(made)
        assert await is_shown_over_quic(served, made)
    assert not caplog.records


def test_what_was_good_is_kept_and_made_into_a_context_once() -> None:
    made = make()
    good = ServerTLS(Certificate.from_pem(made.pem, made.key_pem))
    assert lasting(good) is good
    answers: list[Any] = [good, good, None, good]
    source = lasting(lambda: answers.pop(0))
    assert callable(source)
    current = context_source(source)
    context = current()
    assert current() is current() is context


# ---- kinds of keys


KEYS: dict[str, Callable[[], Any]] = {
    "RSA 2048": lambda: rsa.generate_private_key(65537, 2048),
    "RSA 4096": lambda: rsa.generate_private_key(65537, 4096),
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "Ed448": ed448.Ed448PrivateKey.generate,
}


def made_with(key: Any) -> Made:
    if not isinstance(key, ed448.Ed448PrivateKey):
        return make(("localhost", "127.0.0.1"), key=key)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), 5)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    return Made(builder.sign(key, None), key)  # type: ignore[arg-type]


@real
@pytest.mark.parametrize("kind", KEYS)
async def test_each_kind_of_key_serves_both(kind: str) -> None:
    made = made_with(KEYS[kind]())
    tls = ServerTLS(Certificate.from_pem(made.pem, made.key_pem))
    async with serving(tls) as served:
        assert await shown_over_tcp(served) == digest(made)
        ca = ClientTLS(ca=made.pem)
        async with open_webtransport(served.url("webtransport", "/echo"), tls=ca) as session:
            assert await echoes(session)
        trusting = ssl.create_default_context(cadata=made.pem.decode())
        url = served.url("ws", "/echo")
        async with open_websocket(url, ssl_context=trusting) as websocket:
            assert await echoes(websocket)


def test_a_weak_key_is_told_clearly() -> None:
    made = make(key=rsa.generate_private_key(65537, 1024))
    tls = ServerTLS(Certificate.from_pem(made.pem, made.key_pem))
    with pytest.raises(ValueError, match="OpenSSL does not take the certificate: .*too small"):
        context_source(tls)


def test_the_chain_is_shown_to_both() -> None:
    ca = make_ca()
    middle = make_ca("middle", issuer=ca)
    leaf = make(issuer=middle)
    tls = ServerTLS(Certificate.from_pem(leaf.pem + middle.pem, leaf.key_pem))
    server = context_source(tls)()
    client = ssl.create_default_context(cadata=ca.pem.decode())
    client.verify_flags &= ~ssl.VERIFY_X509_STRICT
    one, two = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(one, two, server_hostname="localhost")
    theirs = server.wrap_bio(two, one, server_side=True)
    for side in (ours, theirs, ours, theirs):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert ours.version() == "TLSv1.3"


# ---- no key is left on the disk


@pytest.mark.parametrize("fails", [False, True])
def test_no_key_is_ever_in_a_file_in_clear_and_none_is_left(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    made = make()
    tls = ServerTLS(Certificate.from_pem(made.pem, made.key_pem))
    seen: list[bytes] = []
    real_load = ssl.SSLContext.load_cert_chain

    def load(self: ssl.SSLContext, certfile: Any, *args: Any, **kwargs: Any) -> None:
        file = Path(certfile)
        assert file.is_relative_to(temporary)
        assert file.parent.stat().st_mode & 0o077 == 0
        seen.append(file.read_bytes())
        if fails:
            raise ssl.SSLError(errno.EIO, "no")
        real_load(self, certfile, *args, **kwargs)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load)
    if fails:
        with pytest.raises(ValueError, match="OpenSSL does not take"):
            context_source(tls)
    else:
        context_source(tls)
    (pem,) = seen
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in pem
    assert b"BEGIN PRIVATE KEY" not in pem
    assert list(temporary.iterdir()) == []


# ---- clients' certificates


@real
@pytest.mark.parametrize("policy", ["require", "request"])
@pytest.mark.parametrize("how", ["bytes", "file", "folder", "itself"])
async def test_clients_certificates_are_judged_alike(policy: Any, how: str, tmp_path: Path) -> None:
    ca, own = make_ca(), make()
    good = make((), issuer=ca, purposes=CLIENT, common_name="good")
    bad = make((), issuer=make_ca("other"), purposes=CLIENT, common_name="bad")
    source: bytes | Path = ca.pem
    if how == "itself":
        # One client is known, rather than an authority.
        source = good.pem
    elif how == "file":
        source = tmp_path / "ca.pem"
        source.write_bytes(ca.pem)
    elif how == "folder":
        name = ssl_name_hash(ca)
        (tmp_path / f"{name}.0").write_bytes(ca.pem)
        source = tmp_path
    tls = ServerTLS(
        Certificate.from_pem(own.pem, own.key_pem), client_ca=source, client_certificates=policy
    )
    peers: list[bytes | None] = []
    app = App()

    @app.session("/")
    async def look(session: WebSocket | WebTransportSession) -> None:
        assert session.request is not None
        peers.append(session.request.tls_peer_certificate)
        if isinstance(session, WebSocket):
            await session.send("hello")
        else:
            async with session.open_stream() as stream:
                await stream.send_all(b"hello")

    async def over_tcp(shown: Made | None) -> None:
        context = ssl_context()
        if shown is not None:
            files = write(tmp_path, shown)
            context.load_cert_chain(*files)
        url = served.url("ws")
        async with open_websocket(url, ssl_context=context) as websocket:
            await websocket.receive()

    async def over_quic(shown: Made | None) -> None:
        own_certificate = None if shown is None else Certificate.from_pem(shown.pem, shown.key_pem)
        client = ClientTLS(server_certificate_hashes=[digest(own)], certificate=own_certificate)
        url = served.url("webtransport")
        async with open_webtransport(url, tls=client) as session:
            await session.incoming_streams.receive()

    async with trio.open_nursery() as nursery:
        served: Serving = await nursery.start(
            lambda task_status: app.serve(
                "127.0.0.1", 0, tls=tls, task_status=task_status, shutdown_timeout=1
            )
        )
        for visit in (over_tcp, over_quic):
            peers.clear()
            await visit(good)
            assert [hashlib.sha256(peer or b"").digest() for peer in peers] == [digest(good)]
            with pytest.raises((HandshakeFailed, trio.BrokenResourceError)):
                await visit(bad)
            if policy == "require":
                with pytest.raises((HandshakeFailed, trio.BrokenResourceError)):
                    await visit(None)
                assert len(peers) == 1
            else:
                await visit(None)
                assert peers[1:] == [None]
        served.shut_down()


def ssl_name_hash(made: Made) -> str:
    """What OpenSSL calls an authority's file in a folder."""
    from OpenSSL import crypto

    return f"{crypto.X509.from_cryptography(made.certificate).subject_name_hash():08x}"


@real
async def test_renewed_files_ask_for_clients_certificates_as_before(tmp_path: Path) -> None:
    ca, first, second = make_ca(), make(), make()
    tls = ReloadingTLS(*write(tmp_path, first), interval=0, client_ca=ca.pem)
    async with serving(tls) as served:
        for made in (first, second):
            write(tmp_path, made)
            with pytest.raises((HandshakeFailed, trio.BrokenResourceError)):
                async with open_websocket(
                    served.url("ws", "/echo"), ssl_context=ssl_context()
                ) as websocket:
                    await websocket.receive()
            assert not await is_shown_over_quic(served, made)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (b"none", ValueError),
        (b"\xff", ValueError),
        ("/nowhere/ca.pem", FileNotFoundError),
    ],
)
def test_authorities_that_cannot_be_used(source: Any, error: type[Exception]) -> None:
    made = make()
    tls = ServerTLS(Certificate.from_pem(made.pem, made.key_pem), client_ca=source)
    with pytest.raises(error, match="client_ca|nowhere"):
        context_source(tls)


@real
async def test_secrets_go_to_the_key_log_if_there_is_one(tmp_path: Path) -> None:
    made, log = make(), tmp_path / "keys.log"
    tls = ServerTLS(Certificate.from_pem(made.pem, made.key_pem), keylog=log)
    async with serving(tls) as served:
        await shown_over_tcp(served)
        over_tcp = log.read_text().count("CLIENT_HANDSHAKE_TRAFFIC_SECRET")
        assert over_tcp == 1
        assert await is_shown_over_quic(served, made)
    assert log.read_text().count("CLIENT_HANDSHAKE_TRAFFIC_SECRET") == 2
