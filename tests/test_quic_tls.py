"""Certificates and settings, and what people are told where they are wrong."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519

from trio_wt._quic.tls import Certificate, ClientTLS, ServerTLS
from trio_wt._quic.verification import (
    CaVerifier,
    CertificateRejected,
    HashVerifier,
    NoVerifier,
)

from .certificates import make, make_ca

RSA_KEY = rsa.generate_private_key(65537, 2048)
CA = make_ca()
LEAF = make(issuer=CA)
OTHER = make(issuer=CA)
OWN = Certificate.from_pem(LEAF.pem, LEAF.key_pem)
DER = LEAF.certificate.public_bytes(serialization.Encoding.DER)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "cert.pem").write_bytes(LEAF.pem + CA.pem)
    (tmp_path / "key.pem").write_bytes(LEAF.key_pem)
    return tmp_path


# ---- certificates


def test_load(files: Path) -> None:
    for certfile, keyfile in (
        (files / "cert.pem", files / "key.pem"),
        (str(files / "cert.pem"), str(files / "key.pem")),
    ):
        loaded = Certificate.load(certfile, keyfile)
        assert loaded.chain == (LEAF.certificate, CA.certificate)
        assert loaded.key.private_numbers() == LEAF.key.private_numbers()
        assert loaded.sha256 == hashlib.sha256(DER).digest()


@pytest.mark.parametrize("key_first", [False, True])
def test_one_file_for_both(files: Path, key_first: bool) -> None:
    parts = [LEAF.pem + CA.pem, b"words between\n", LEAF.key_pem]
    both = files / "both.pem"
    both.write_bytes(b"".join(reversed(parts) if key_first else parts))
    assert Certificate.load(both).chain == (LEAF.certificate, CA.certificate)


def test_what_openssl_writes_beside_keys(files: Path) -> None:
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    key = LEAF.encrypted_key(None, old_format=True)
    assert b"BEGIN EC PRIVATE KEY" in key
    text = (parameters + key).replace(b"\n", b"\r\n")
    assert Certificate.from_pem(LEAF.pem.replace(b"\n", b"\r\n"), text).chain == (LEAF.certificate,)


@pytest.mark.parametrize(
    "key",
    [
        RSA_KEY,
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["RSA", "P-256", "P-384", "Ed25519"],
)
@pytest.mark.parametrize("password", [None, "geheim", b"geheim"])
def test_keys(key: Any, password: str | bytes | None) -> None:
    made = make(issuer=CA, key=key)
    secret = password.encode() if isinstance(password, str) else password
    # The old format does not know Ed25519.
    for old_format in {False, not isinstance(key, ed25519.Ed25519PrivateKey)}:
        pem = made.encrypted_key(secret, old_format=old_format)
        loaded = Certificate.from_pem(made.pem, pem, password)
        assert loaded.key.public_key() == key.public_key()


def test_a_password_that_is_not_needed_does_no_harm() -> None:
    assert Certificate.from_pem(LEAF.pem, LEAF.key_pem, "for nothing").chain == (LEAF.certificate,)


def test_the_key_is_not_shown() -> None:
    assert "key=" not in repr(OWN)


@pytest.mark.parametrize("name", ["cert.pem", "key.pem"])
def test_a_missing_file(files: Path, name: str) -> None:
    (files / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        Certificate.load(files / "cert.pem", files / "key.pem")


def damaged(pem: bytes) -> bytes:
    lines = pem.splitlines(keepends=True)
    return b"".join([lines[0], *lines[2:]])


@pytest.mark.parametrize(
    ("chain", "key", "password", "said"),
    [
        (b"", LEAF.key_pem, None, "cert.pem: there is no certificate in it; it is not PEM"),
        (DER, LEAF.key_pem, None, "cert.pem: there is no certificate in it; it is not PEM"),
        (LEAF.key_pem, LEAF.key_pem, None, "cert.pem: there is no certificate in it"),
        (damaged(LEAF.pem), LEAF.key_pem, None, "cert.pem: certificate number 1 is damaged"),
        (LEAF.pem + damaged(CA.pem), LEAF.key_pem, None, "certificate number 2 is damaged"),
        (LEAF.pem, b"garbage", None, "key.pem: there is no private key in it; it is not PEM"),
        (LEAF.pem, LEAF.pem, None, "key.pem: there is no private key in it"),
        (LEAF.pem, damaged(LEAF.key_pem), None, "key.pem: the private key cannot be used"),
        (LEAF.pem, OTHER.key_pem, None, "key.pem: the private key does not belong"),
        (CA.pem + LEAF.pem, LEAF.key_pem, None, "certificate number 2; that one must come first"),
        (LEAF.pem, LEAF.encrypted_key(b"a"), None, "key.pem: the private key is encrypted; give"),
        (LEAF.pem, LEAF.encrypted_key(b"a"), "", "key.pem: the private key is encrypted; give"),
        (LEAF.pem, LEAF.encrypted_key(b"a", old_format=True), None, "is encrypted; give"),
        (LEAF.pem, LEAF.encrypted_key(b"a"), "b", "password may be wrong"),
        (LEAF.pem, LEAF.encrypted_key(b"a", old_format=True), "b", "password may be wrong"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(
    chain: bytes, key: bytes, password: str | None, said: str, tmp_path: Path
) -> None:
    (tmp_path / "cert.pem").write_bytes(chain)
    (tmp_path / "key.pem").write_bytes(key)
    with pytest.raises(ValueError, match="^/") as info:
        Certificate.load(tmp_path / "cert.pem", tmp_path / "key.pem", password)
    assert said in str(info.value)
    with pytest.raises(ValueError, match="^the (certificate|key)'s PEM"):
        Certificate.from_pem(chain, key, password)


def test_one_file_without_a_key(files: Path) -> None:
    with pytest.raises(ValueError, match=r"cert\.pem: there is no private key in it"):
        Certificate.load(files / "cert.pem")


def test_one_file_with_another_key(files: Path) -> None:
    (files / "both.pem").write_bytes(LEAF.pem + OTHER.key_pem)
    with pytest.raises(ValueError, match=r"^[^ ]+/both\.pem: the private key does not belong"):
        Certificate.load(files / "both.pem")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (ec.generate_private_key(ec.SECP521R1()), "its curve is secp521r1; use P-256 or P-384"),
        (x25519.X25519PrivateKey.generate(), "not RSA, ECDSA, Ed25519 or Ed448"),
        (dsa.generate_private_key(1024), "not RSA, ECDSA, Ed25519 or Ed448"),
    ],
    ids=["P-521", "X25519", "DSA"],
)
def test_keys_that_cannot_be_used(key: Any, said: str) -> None:
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with pytest.raises(ValueError, match=said):
        Certificate.from_pem(LEAF.pem, pem)
    with pytest.raises(ValueError, match=said):
        Certificate((LEAF.certificate,), key)


def test_made_from_parts() -> None:
    assert Certificate((LEAF.certificate,), LEAF.key).sha256 == OWN.sha256
    key = ed448.Ed448PrivateKey.generate()
    with pytest.raises(ValueError, match="does not belong"):
        Certificate((LEAF.certificate,), key)
    with pytest.raises(ValueError, match="there is no certificate"):
        Certificate((), LEAF.key)


def test_a_certificate_of_an_unknown_kind_of_key() -> None:
    """The object identifier of the key's kind, made into one that means nothing."""
    der = DER.replace(bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06072a8648ce3d027f"))
    with pytest.raises(ValueError, match="unknown kind"):
        Certificate((x509.load_der_x509_certificate(der),), LEAF.key)


def test_from_trustme() -> None:
    issued = trustme.CA().create_child_ca().issue_cert("localhost")
    pem = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    loaded = Certificate.from_pem(pem, issued.private_key_pem.bytes())
    assert len(loaded.chain) == 2
    both = issued.private_key_and_cert_chain_pem.bytes()
    assert Certificate.from_pem(both, both).chain == loaded.chain


# ---- servers


def test_server() -> None:
    tls = ServerTLS(OWN)
    assert tls.verifier() is None
    assert tls.open_keylog() is None
    with pytest.raises(AttributeError):
        tls.keylog = "x"  # type: ignore[misc]


def test_server_that_asks_for_certificates(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(CA.pem)
    from_clients = make((), issuer=CA, purposes=[x509.ExtendedKeyUsageOID.CLIENT_AUTH])
    for source in (CA.pem, path, str(path)):
        verifier = ServerTLS(OWN, client_ca=source).verifier()
        assert verifier is not None
        verifier.verify(from_clients.certificate, [], None)
        with pytest.raises(CertificateRejected, match="cannot be a client's"):
            verifier.verify(LEAF.certificate, [], None)


def test_a_server_keeps_no_keylog_that_it_was_not_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    assert ServerTLS(OWN).open_keylog() is None
    assert list(tmp_path.iterdir()) == []
    assert ServerTLS(OWN, keylog=tmp_path / "mine").open_keylog() is not None
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        (
            {"certificate": "cert.pem"},
            TypeError,
            "must be a Certificate, not str; Certificate.load",
        ),
        ({"client_certificates": "maybe"}, ValueError, "'require' or 'request', and is 'maybe'"),
        ({"client_ca": CA.pem.decode()}, ValueError, "client_ca is PEM as str"),
    ],
)
def test_a_server_set_up_wrongly(
    settings: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        ServerTLS(**{"certificate": OWN, **settings})


# ---- clients


def test_client() -> None:
    assert isinstance(ClientTLS().verifier(), CaVerifier)
    assert isinstance(ClientTLS(verify=False).verifier(), NoVerifier)
    by_hash = ClientTLS(server_certificate_hashes=[OWN.sha256]).verifier()
    assert isinstance(by_hash, HashVerifier)
    by_hash.verify(LEAF.certificate, [], "elsewhere.example")
    by_ca = ClientTLS(ca=CA.pem).verifier()
    by_ca.verify(LEAF.certificate, [], "localhost")
    with pytest.raises(CertificateRejected, match=r"'elsewhere\.example', but for localhost"):
        by_ca.verify(LEAF.certificate, [], "elsewhere.example")


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({"ca": CA.pem.decode()}, ValueError, "ca is PEM as str"),
        ({"ca": CA.pem, "verify": False}, ValueError, "ca and verify=False contradict"),
        ({"ca": CA.pem, "server_certificate_hashes": [bytes(32)]}, ValueError, "contradict"),
        ({"server_certificate_hashes": [bytes(32)], "verify": False}, ValueError, "contradict"),
        ({"server_certificate_hashes": bytes(32)}, TypeError, "a sequence of hashes"),
        ({"server_certificate_hashes": "aa" * 32}, TypeError, "not str; bytes.fromhex"),
        ({"server_certificate_hashes": ["aa" * 32]}, TypeError, "not str; bytes.fromhex"),
        ({"server_certificate_hashes": [bytes(20)]}, ValueError, "32 bytes, and is 20"),
        ({"certificate": ("a", "b")}, TypeError, "must be a Certificate, not tuple"),
    ],
)
def test_a_client_set_up_wrongly(
    settings: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        ClientTLS(**settings)


def test_a_ca_that_is_not_there(tmp_path: Path) -> None:
    tls = ClientTLS(ca=tmp_path / "missing.pem")
    with pytest.raises(FileNotFoundError, match=r"missing\.pem"):
        tls.verifier()
    with pytest.raises(FileNotFoundError, match=r"missing\.pem"):
        tls.trust()


def test_trust_tells_apart_what_judges_servers(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(CA.pem)
    other = Certificate.from_pem(OTHER.pem, OTHER.key_pem)
    hashes = [bytes(32), OWN.sha256]
    different: list[dict[str, Any]] = [
        {},
        {"verify": False},
        {"ca": CA.pem},
        {"ca": path},
        {"ca": CA.pem + OTHER.pem},
        {"server_certificate_hashes": hashes},
        {"server_certificate_hashes": hashes[:1]},
        {"certificate": OWN},
        {"certificate": other},
        {"certificate": OWN, "ca": CA.pem},
    ]
    digests = [ClientTLS(**settings).trust() for settings in different]
    assert len(set(digests)) == len(different)
    assert digests == [ClientTLS(**settings).trust() for settings in different]
    assert ClientTLS(server_certificate_hashes=hashes[::-1]).trust() == digests[5]
    assert ClientTLS(server_name="x", keylog="y").trust() == digests[0]
    path.write_bytes(CA.pem + OTHER.pem)
    assert ClientTLS(ca=path).trust() != digests[3]


def test_the_environment_names_a_clients_keylog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSLKEYLOGFILE", raising=False)
    assert ClientTLS().open_keylog() is None
    monkeypatch.setenv("SSLKEYLOGFILE", "")
    assert ClientTLS().open_keylog() is None
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "environment"))
    for tls, name in ((ClientTLS(), "environment"), (ClientTLS(keylog=tmp_path / "own"), "own")):
        keylog = tls.open_keylog()
        assert keylog is not None
        keylog.write(f"{name}\n")
        assert Path(tmp_path, name).read_text() == f"{name}\n"


def test_certificates_of_the_command_line_are_taken() -> None:
    """`trio-wt cert` makes what serves both ways: by its hash, and as its own authority."""
    from trio_wt._cli.certificate import make_certificate

    made = make_certificate()
    own = Certificate.from_pem(made.certificate, made.key)
    ClientTLS(ca=made.certificate).verifier().verify(own.chain[0], [], "127.0.0.1")
    ClientTLS(server_certificate_hashes=[own.sha256]).verifier().verify(own.chain[0], [], "x")
