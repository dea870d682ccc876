"""Which certificates are believed, and which alert the others are refused with."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import ssl
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import certifi
import pytest
import trustme
from aioquic.tls import AlertDescription
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trio_wt import HandshakeFailed
from trio_wt._quic import trust
from trio_wt._quic.verification import (
    CaVerifier,
    CertificateRejected,
    HashVerifier,
    NoVerifier,
    Purpose,
    Verifier,
    no_certificate,
)

from .certificates import DAY, NOW, Made, key_usage, make, make_ca

BAD = AlertDescription.bad_certificate
EXPIRED = AlertDescription.certificate_expired
UNKNOWN = AlertDescription.unknown_ca
UNSUPPORTED = AlertDescription.unsupported_certificate
FORGED = AlertDescription.decrypt_error

ROOT = make_ca("root")
OTHER_ROOT = make_ca("other root")
# The same name, another key.
FALSE_ROOT = make_ca("root")
MIDDLE = make_ca("middle", issuer=ROOT)
RSA_KEY = rsa.generate_private_key(65537, 2048)
SERVER = (ExtendedKeyUsageOID.SERVER_AUTH,)
CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)
ANY = (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)


@dataclass
class Case:
    """A certificate that a peer shows, and the alert it is refused with; None if it is good."""

    name: str
    leaf: Made
    alert: AlertDescription | None = None
    message: str = ""
    chain: list[Made] = field(default_factory=list)
    trusted: list[Made] = field(default_factory=lambda: [ROOT])
    server_name: str = "localhost"
    peer: Purpose = "server"
    # Where the ssl module decides otherwise.
    stricter_than_ssl: bool = False


def forged() -> Made:
    """A certificate whose signature is of something else."""
    real = make(issuer=ROOT)
    der = bytearray(real.certificate.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    return Made(x509.load_der_x509_certificate(bytes(der)), real.key)


def constrained(*, permitted: str) -> Made:
    constraint = x509.NameConstraints([x509.DNSName(permitted)], None)
    return make_ca("constrained", issuer=ROOT, extensions=[(constraint, True)])


def under(issuer: Made, **kwargs: object) -> dict[str, object]:
    return {"leaf": make(issuer=issuer, **kwargs), "chain": [issuer]}  # type: ignore[arg-type]


def cases() -> list[Case]:
    self_signed = make()
    with_names = make(
        ["example.com", "*.wild.example.com", "127.0.0.1", "10.0.0.1", "::1", "2001:db8::7"],
        issuer=ROOT,
    )
    spiffe = x509.UniformResourceIdentifier("https://example.com:8443/path")
    odd_names = make(["example.com", "*.com", "a.*.example.com"], issuer=ROOT, other_names=[spiffe])
    short = make_ca("short", issuer=ROOT, path_length=0)
    below_short = make_ca("below short", issuer=short)
    no_ca = make(["middle"], issuer=ROOT, common_name="no authority", purposes=None)
    no_constraints = make_ca(
        "no constraints", issuer=ROOT, ca=None, usage=key_usage(key_cert_sign=True)
    )
    no_cert_sign = make_ca("no cert sign", issuer=ROOT, usage=key_usage())
    for_clients = make_ca("for clients", issuer=ROOT, purposes=CLIENT)
    for_servers = make_ca("for servers", issuer=ROOT, purposes=SERVER)
    old_middle = make_ca("old", issuer=ROOT, ends=NOW - DAY, begins=NOW - 9 * DAY)
    old_root = make_ca("old root", ends=NOW - DAY, begins=NOW - 9 * DAY)
    small = make_ca("small", issuer=ROOT, key=rsa.generate_private_key(65537, 1024))
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00")
    found = [
        Case("direct", make(issuer=ROOT)),
        Case("RSA", make(issuer=ROOT, key=RSA_KEY)),
        Case("P-384", make(issuer=ROOT, key=ec.generate_private_key(ec.SECP384R1()))),
        Case("Ed25519", make(issuer=ROOT, key=ed25519.Ed25519PrivateKey.generate())),
        Case("root sent along", make(issuer=ROOT), chain=[ROOT]),
        Case("through an intermediate", **under(MIDDLE)),
        Case("intermediates in disorder", make(issuer=MIDDLE), chain=[OTHER_ROOT, ROOT, MIDDLE]),
        Case("intermediate is trusted", make(issuer=MIDDLE), trusted=[MIDDLE]),
        Case("intermediate trusted and sent", **under(MIDDLE), trusted=[MIDDLE]),
        Case("intermediate missing", make(issuer=MIDDLE), UNKNOWN, "did not send an intermediate"),
        Case("wrong CA", make(issuer=OTHER_ROOT), UNKNOWN, "not among the trusted"),
        Case("wrong CA, sent along", make(issuer=OTHER_ROOT), UNKNOWN, "root", [OTHER_ROOT]),
        Case("wrong CA of the same name", make(issuer=FALSE_ROOT), FORGED, "signature"),
        Case("the peer sends its own root", make(issuer=FALSE_ROOT), FORGED, "", [FALSE_ROOT]),
        Case("forged", forged(), FORGED, "signature failure"),
        Case("self-signed", self_signed, UNKNOWN, "self-signed"),
        Case("self-signed and trusted", self_signed, trusted=[self_signed]),
        Case("self-signed, one of two trusted", self_signed, trusted=[ROOT, self_signed]),
        Case("another self-signed", make(), UNKNOWN, "self-signed", trusted=[self_signed]),
        Case("trusted itself", with_names, trusted=[with_names], server_name="example.com"),
        Case(
            "expired",
            make(issuer=ROOT, begins=NOW - 9 * DAY, ends=NOW - DAY),
            EXPIRED,
            f"expired at {NOW - DAY:%Y-%m-%d %H:%M:%S} UTC",
        ),
        Case(
            "not yet valid",
            make(issuer=ROOT, begins=NOW + DAY, ends=NOW + 9 * DAY),
            EXPIRED,
            f"is not valid before {NOW + DAY:%Y-%m-%d %H:%M:%S} UTC",
        ),
        Case("intermediate expired", alert=EXPIRED, message="'CN=old'", **under(old_middle)),
        Case("root expired", make(issuer=old_root), EXPIRED, "old root", trusted=[old_root]),
        Case(
            "trusted itself, but expired",
            expired := make(begins=NOW - 9 * DAY, ends=NOW - DAY),
            EXPIRED,
            trusted=[expired],
        ),
        Case("issued by a server", alert=UNKNOWN, **under(no_ca)),
        Case(
            "key usage stands for basic constraints",
            alert=UNKNOWN,
            stricter_than_ssl=True,
            **under(no_constraints),
        ),
        Case("issuer may not sign certificates", alert=UNKNOWN, **under(no_cert_sign)),
        Case("path too long", make(issuer=below_short), UNKNOWN, "", [below_short, short]),
        Case("name constraint kept", **under(constrained(permitted="localhost"))),
        Case("name constraint broken", alert=BAD, **under(constrained(permitted="example.com"))),
        Case(
            "unknown critical extension",
            make(issuer=ROOT, extensions=[(unknown, True)]),
            BAD,
            "critical extension",
        ),
        Case("unknown extension", make(issuer=ROOT, extensions=[(unknown, False)])),
        Case("no purpose", make(issuer=ROOT, purposes=None)),
        Case("both purposes", make(issuer=ROOT, purposes=CLIENT + SERVER)),
        Case("a client's", make(issuer=ROOT, purposes=CLIENT), UNSUPPORTED, "cannot be a server's"),
        Case("any purpose", make(issuer=ROOT, purposes=ANY), UNSUPPORTED),
        Case("issuer for clients", alert=UNSUPPORTED, message="for clients", **under(for_clients)),
        Case("issuer for servers", **under(for_servers)),
        Case("key usage: signatures", make(issuer=ROOT, usage=key_usage())),
        Case(
            "key usage: none",
            make(issuer=ROOT, usage=key_usage(digital_signature=False, key_cert_sign=True)),
            UNSUPPORTED,
            "signatures",
        ),
        Case(
            "RSA, 1024 bits",
            make(issuer=ROOT, key=rsa.generate_private_key(65537, 1024)),
            BAD,
            "too weak",
        ),
        Case("RSA, 1024 bits, above", alert=BAD, message="'CN=small'", **under(small)),
        Case(
            "P-192", make(issuer=ROOT, key=ec.generate_private_key(ec.SECP192R1())), BAD, "too weak"
        ),
        Case("no names", make((), issuer=ROOT, common_name="localhost"), BAD, "no names", stricter_than_ssl=True),
        Case("no such name", make(["a.example"], issuer=ROOT), BAD, "'localhost', but for a.example"),
        Case("only addresses", make(["127.0.0.1"], issuer=ROOT), BAD, "but for 127.0.0.1"),
        Case("only an URI", make((), issuer=ROOT, other_names=[spiffe]), BAD, "but for no name"),
        Case("odd names beside", odd_names, server_name="example.com"),
        Case("wildcard for a whole domain", odd_names, BAD, server_name="foo.com"),
        Case("wildcard in the middle", odd_names, BAD, server_name="a.b.example.com"),
        Case("too many certificates", make(issuer=ROOT), BAD, "17 others", [MIDDLE] * 17, stricter_than_ssl=True),
        Case("client", make(issuer=ROOT, purposes=CLIENT), peer="client"),
        Case("client without names", make((), issuer=ROOT, purposes=CLIENT), peer="client"),
        Case("client without purpose", make(issuer=ROOT, purposes=None), peer="client"),
        Case("a server as client", make(issuer=ROOT), UNSUPPORTED, "client's", peer="client"),
        Case("client of another CA", make(issuer=OTHER_ROOT, purposes=CLIENT), UNKNOWN, peer="client"),
        Case("client through servers' CA", alert=UNSUPPORTED, peer="client", **under(for_servers, purposes=CLIENT)),
        Case(
            "expired client",
            make(issuer=ROOT, purposes=CLIENT, begins=NOW - 2 * DAY, ends=NOW - DAY),
            EXPIRED,
            peer="client",
        ),
    ]  # fmt: skip
    good = [
        "example.com",
        "EXAMPLE.com",
        "example.com.",
        "a.wild.example.com",
        "127.0.0.1",
        "10.0.0.1",
    ]
    good += ["::1", "0:0::1", "2001:DB8::7"]
    found += [Case(f"name: {name}", with_names, server_name=name) for name in good]
    found.append(Case("zone", with_names, server_name="::1%lo", stricter_than_ssl=True))
    wrong = ["localhost", "wild.example.com", "a.b.wild.example.com", "xexample.com", "com"]
    wrong += ["127.0.0.2", "::2", "1.0.0.127", "*.wild.example.com", "example.com.evil.org"]
    return found + [Case(f"name: {name}", with_names, BAD, server_name=name) for name in wrong]


CASES = cases()


def pem(made: list[Made]) -> bytes:
    return b"".join(one.pem for one in made)


def verify(
    verifier: Verifier, made: Made, chain: list[Made] | None = None, name: str | None = "localhost"
) -> None:
    verifier.verify(made.certificate, [one.certificate for one in chain or []], name)


def rejected(
    verifier: Verifier, made: Made, chain: list[Made] | None = None, name: str | None = "localhost"
) -> CertificateRejected:
    with pytest.raises(CertificateRejected) as info:
        verify(verifier, made, chain, name)
    return info.value


# ---- authorities


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_ca(case: Case) -> None:
    verifier = CaVerifier(pem(case.trusted), case.peer)
    name = case.server_name if case.peer == "server" else None
    if case.alert is None:
        verify(verifier, case.leaf, case.chain, name)
    else:
        error = rejected(verifier, case.leaf, case.chain, name)
        assert error.alert == case.alert, error
        assert case.message in str(error)
        assert str(error).startswith("the certificate ")


def ssl_decides(case: Case, directory: Path) -> str | None:
    """What the ssl module thinks of a certificate: None if it takes it."""
    shows, trusts = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if case.peer == "client":
        shows, trusts = (
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        )
        shows.check_hostname, shows.verify_mode = False, ssl.CERT_NONE
        own = CASES[0].leaf
        (directory / "own.pem").write_bytes(own.pem + own.key_pem)
        trusts.load_cert_chain(directory / "own.pem")
    trusts.verify_mode = ssl.CERT_REQUIRED
    trusts.set_ciphers("DEFAULT@SECLEVEL=2")
    trusts.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    trusts.load_verify_locations(cadata=pem(case.trusted).decode())
    # It lets a context show what it would not take itself only at this level.
    shows.set_ciphers("DEFAULT@SECLEVEL=0")
    (directory / "peer.pem").write_bytes(pem([case.leaf, *case.chain]) + case.leaf.key_pem)
    shows.load_cert_chain(directory / "peer.pem")
    wires = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_context, server_context = (trusts, shows) if case.peer == "server" else (shows, trusts)
    name = case.server_name if case.peer == "server" else None
    client = client_context.wrap_bio(wires[0], wires[1], server_hostname=name)
    server = server_context.wrap_bio(wires[1], wires[0], server_side=True)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as exc:
                return str(exc)
    return None


# The ssl module takes no wildcard and no final dot as a server's name.
FOR_SSL = [case for case in CASES if not re.search(r"^\*|\.$", case.server_name)]


@pytest.mark.parametrize("case", FOR_SSL, ids=[case.name for case in FOR_SSL])
def test_the_ssl_module_agrees(case: Case, tmp_path: Path) -> None:
    said = ssl_decides(case, tmp_path)
    if not case.stricter_than_ssl:
        assert (said is None) == (case.alert is None), said


@pytest.mark.parametrize("ca", [None, False])
def test_issuers_are_authorities_whatever_openssl_lets_stand_for_it(
    ca: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its version 3 takes a key usage in place of the basic constraints."""
    middle = make_ca("middle", issuer=ROOT, ca=ca, usage=key_usage(key_cert_sign=True))
    leaf = make(issuer=middle)
    built = [one.certificate for one in (leaf, middle, ROOT)]
    monkeypatch.setattr(CaVerifier, "_build", lambda *args: built)
    error = rejected(CaVerifier(ROOT.pem), leaf, [middle])
    assert error.alert == UNKNOWN
    assert "issued by 'CN=middle', which is no authority" in str(error)


def test_trustme_is_believed() -> None:
    ca = trustme.CA()
    for issuer, chained in ((ca, False), (ca.create_child_ca(), True)):
        issued = issuer.issue_cert("example.com", "*.example.org", "192.0.2.1", "fe80::1")
        leaf, *chain = [x509.load_pem_x509_certificate(b.bytes()) for b in issued.cert_chain_pems]
        assert bool(chain) is chained
        verifier = CaVerifier(ca.cert_pem.bytes())
        for name in ("example.com", "www.example.org", "192.0.2.1", "fe80::1", "fe80::1%2"):
            verifier.verify(leaf, chain, name)
        with pytest.raises(CertificateRejected, match="is not for 'example.org'"):
            verifier.verify(leaf, chain, "example.org")


def test_what_openssl_makes_by_default_is_believed(tmp_path: Path) -> None:
    """Its certificates are authorities without a key usage; people give them to servers."""
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2"
    extra = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    try:
        subprocess.run([*command.split(), *extra], cwd=tmp_path, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no openssl command")
    leaf = x509.load_pem_x509_certificate((tmp_path / "cert.pem").read_bytes())
    CaVerifier(tmp_path / "cert.pem").verify(leaf, [], "localhost")


@pytest.mark.parametrize("hash_name", ["sha1", "sha256"])
def test_weak_signatures_are_refused_but_on_what_is_trusted(hash_name: str, tmp_path: Path) -> None:
    def openssl(*arguments: str) -> None:
        command = ["openssl", *arguments, f"-{hash_name}", "-days", "2"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-x509"]
    try:
        openssl("req", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=old")
        issued = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=DNS:localhost"]
        openssl("req", *new, *issued, "-keyout", "key.pem", "-out", "leaf.pem", "-subj", "/CN=x")
    except FileNotFoundError:
        pytest.skip("there is no openssl command")
    root, leaf = [
        x509.load_pem_x509_certificate((tmp_path / name).read_bytes())
        for name in ("ca.pem", "leaf.pem")
    ]
    assert root.signature_hash_algorithm.name == leaf.signature_hash_algorithm.name == hash_name
    CaVerifier(tmp_path / "leaf.pem").verify(leaf, [], "localhost")
    verifier = CaVerifier(tmp_path / "ca.pem")
    if hash_name == "sha256":
        verifier.verify(leaf, [], "localhost")
        return
    with pytest.raises(CertificateRejected, match="too weak, with sha1") as info:
        verifier.verify(leaf, [], "localhost")
    assert info.value.alert == BAD


def test_international_names() -> None:
    made = make(["xn--bcher-kva.example"], issuer=ROOT)
    verifier = CaVerifier(ROOT.pem)
    verify(verifier, made, name="bücher.example")
    verify(verifier, made, name="xn--bcher-kva.example")
    rejected(verifier, made, name="bucher.example")


@pytest.mark.parametrize("name", [None, ""])
def test_a_server_without_a_name_is_refused(name: str | None) -> None:
    """Whoever forgets the name must not get a connection that nobody has checked."""
    error = rejected(CaVerifier(ROOT.pem), make(issuer=ROOT), name=name)
    assert "no server name" in str(error)


@pytest.mark.parametrize(
    "name", [" ", "a b", "..", "\0", "x" * 300, "café..", "1.2.3", "1", "[::1]", "\ud800"]
)
def test_a_name_that_is_none_matches_nothing(name: str) -> None:
    rejected(CaVerifier(ROOT.pem), make(["*.example.com", "::1"], issuer=ROOT), name=name)


def test_what_a_peer_put_into_its_certificate_is_shown_safely() -> None:
    made = make(issuer=OTHER_ROOT, common_name="\x1b[2J")
    error = rejected(CaVerifier(ROOT.pem), made, [make_ca("\x1b[31m evil\n")])
    assert str(error).isprintable()
    middle = make_ca("\x1b[31m evil\n", issuer=ROOT, ends=NOW - DAY, begins=NOW - 2 * DAY)
    error = rejected(CaVerifier(ROOT.pem), make(issuer=middle), [middle])
    assert "evil" in str(error)
    assert str(error).isprintable()


DER = bytes(
    make(issuer=ROOT, usage=key_usage()).certificate.public_bytes(serialization.Encoding.DER)
)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    st.lists(
        st.tuples(st.integers(0, len(DER) - 1), st.integers(1, 255)),
        min_size=1,
        max_size=4,
        unique_by=lambda c: c[0],
    )
)
def test_a_changed_certificate_is_refused_and_nothing_else_is_raised(
    changes: list[tuple[int, int]],
) -> None:
    der = bytearray(DER)
    for position, mask in changes:
        der[position] ^= mask
    try:
        certificate = x509.load_der_x509_certificate(bytes(der))
    except (ValueError, x509.InvalidVersion):
        return  # it never comes so far
    for verifier in (
        CaVerifier(ROOT.pem),
        CaVerifier(ROOT.pem, "client"),
        HashVerifier([bytes(32)]),
    ):
        with pytest.raises(CertificateRejected):
            verifier.verify(certificate, [MIDDLE.certificate, certificate], "localhost")


# ---- where trust comes from


def test_sources(tmp_path: Path) -> None:
    leaf = make(issuer=ROOT)
    file = tmp_path / "ca.pem"
    file.write_bytes(b"some words before\n" + OTHER_ROOT.pem + ROOT.pem.replace(b"\n", b"\r\n"))
    for source in (ROOT.pem, OTHER_ROOT.pem + ROOT.pem, file, str(file)):
        verify(CaVerifier(source), leaf)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no usable certificate"),
        (b"nonsense", "no usable certificate"),
        (make().key_pem, "no usable certificate"),
        (ROOT.pem[:200] + b"\n-----END CERTIFICATE-----\n", "no usable certificate"),
    ],
)
def test_sources_that_hold_nothing(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as info:
        CaVerifier(path)
    assert str(path) in str(info.value)
    with pytest.raises(ValueError, match=said):
        CaVerifier(content)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing.pem"):
        CaVerifier(tmp_path / "missing.pem")


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="openssl rehash"):
        CaVerifier(tmp_path)
    (tmp_path / "root.pem").write_bytes(ROOT.pem)
    try:
        subprocess.run(["openssl", "rehash", tmp_path], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no openssl command")
    verifier = CaVerifier(tmp_path)
    verify(verifier, make(issuer=ROOT))
    rejected(verifier, make(issuer=OTHER_ROOT))


def test_a_source_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(ROOT.pem)
    verifier = CaVerifier(path)
    with monkeypatch.context() as patch:
        patch.setattr(trust, "_load", lambda source: pytest.fail("it was read again"))
        patch.setattr(os, "stat", lambda path: pytest.fail("a handshake looked at a file"))
        verify(verifier, make(issuer=ROOT))
    with monkeypatch.context() as patch:
        patch.setattr(trust, "_load", lambda source: pytest.fail("it was read again"))
        CaVerifier(str(path))
        CaVerifier(path, "client")
    path.write_bytes(OTHER_ROOT.pem + ROOT.pem)
    verify(CaVerifier(path), make(issuer=OTHER_ROOT))
    rejected(verifier, make(issuer=OTHER_ROOT))


def test_few_sources_are_kept() -> None:
    pems = [ROOT.pem + b"\n" * number for number in range(1, 40)]
    for source in pems:
        CaVerifier(source)
    assert len(trust._stores) == 32
    assert trust.source_key(pems[-1]) in trust._stores
    assert trust.source_key(pems[0]) not in trust._stores


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def set_paths(cafile: Path | None = None, capath: Path | None = None, **environ: str) -> None:
        paths = ssl.get_default_verify_paths()._replace(
            cafile=cafile and str(cafile), capath=capath and str(capath)
        )
        monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths)
        for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)

    monkeypatch.setattr(trust, "_stores", type(trust._stores)())
    return set_paths


def test_the_system_trusts_a_file_and_a_directory(
    system: Callable[..., None], tmp_path: Path
) -> None:
    file, directory = tmp_path / "ca.pem", tmp_path / "certs"
    file.write_bytes(ROOT.pem)
    directory.mkdir()
    system(file, directory)
    verify(CaVerifier(None), make(issuer=ROOT))
    rejected(CaVerifier(None), make(issuer=OTHER_ROOT))
    (directory / "other.pem").write_bytes(OTHER_ROOT.pem)
    try:
        subprocess.run(["openssl", "rehash", directory], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no openssl command")
    for paths in ((file, directory), (None, directory)):
        system(*paths)
        verify(CaVerifier(None), make(issuer=OTHER_ROOT))
    rejected(CaVerifier(None), make(issuer=ROOT))


def test_the_environment_says_what_the_system_trusts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(ROOT.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    verify(CaVerifier(None), make(issuer=ROOT))


def test_certifi_is_the_last_resort(
    system: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(ROOT.pem)
    monkeypatch.setattr(certifi, "where", lambda: str(path))
    system()
    verify(CaVerifier(None), make(issuer=ROOT))
    empty = tmp_path / "empty.pem"
    empty.touch()
    system(empty, tmp_path)
    verify(CaVerifier(None), make(issuer=ROOT))


def test_nobody_is_trusted_in_place_of_what_the_environment_names(
    system: Callable[..., None],
) -> None:
    system(SSL_CERT_FILE="/nowhere")
    with pytest.raises(ValueError, match="SSL_CERT_FILE points"):
        CaVerifier(None)


def test_the_real_system_does_not_trust_us() -> None:
    assert rejected(CaVerifier(None), make(issuer=ROOT)).alert == UNKNOWN


# ---- hashes


def digest(made: Made) -> bytes:
    return hashlib.sha256(made.certificate.public_bytes(serialization.Encoding.DER)).digest()


@pytest.mark.parametrize(
    "made",
    [
        make(),
        make(()),
        make(["elsewhere.example"], issuer=OTHER_ROOT, purposes=None),
        make(begins=NOW - DAY, ends=NOW + 13 * DAY),
    ],
    ids=["plain", "no name", "of a CA", "14 days"],
)
def test_a_hash_is_enough(made: Made) -> None:
    verify(HashVerifier([bytes(32), digest(made)]), made)
    verify(HashVerifier([digest(made)]), made, [OTHER_ROOT], None)


@pytest.mark.parametrize(
    ("made", "alert", "said"),
    [
        (make(begins=NOW - DAY, ends=NOW + 14 * DAY), BAD, "valid for 15 days"),
        (make(begins=NOW - DAY, ends=NOW + 13 * DAY + DAY / 86400), BAD, "14 days at most"),
        (make(begins=NOW - 9 * DAY, ends=NOW - DAY), EXPIRED, "expired"),
        (make(begins=NOW + DAY, ends=NOW + 2 * DAY), EXPIRED, "not valid before"),
        (make(key=RSA_KEY), BAD, "P-256"),
        (make(key=ec.generate_private_key(ec.SECP384R1())), BAD, "P-256"),
        (make(key=ed25519.Ed25519PrivateKey.generate()), BAD, "P-256"),
    ],
    ids=["too long", "a second too long", "expired", "not yet", "RSA", "P-384", "Ed25519"],
)
def test_a_hash_is_not_enough(made: Made, alert: AlertDescription, said: str) -> None:
    error = rejected(HashVerifier([digest(made)]), made)
    assert error.alert == alert
    assert said in str(error)


def test_another_hash() -> None:
    """The real one is told: a developer can see that the server has a new certificate."""
    made, other = make(issuer=ROOT), make()
    error = rejected(HashVerifier([digest(other)]), made, [other])
    assert error.alert == BAD
    assert digest(made).hex() in str(error)
    rejected(HashVerifier([]), made)


# ---- the rest


def test_without_verification() -> None:
    verify(NoVerifier(), make(begins=NOW - 9 * DAY, ends=NOW - DAY), name=None)


def test_the_error() -> None:
    error = no_certificate("client")
    assert isinstance(error, HandshakeFailed)
    assert (error.alert, str(error)) == (116, "the client showed no certificate")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.alert, str(again)) == (CertificateRejected, 116, str(error))
