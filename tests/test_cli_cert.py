"""`trio-wt cert`: what is in the certificate, and how its files are written."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import ipaddress
import os
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from trio_wt.cli import main

from .cli_tools import fails


def make(*arguments: str) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["cert", *arguments])
    assert exit_.value.code == 0


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_it_is_what_browsers_accept_by_hash(tmp_path: Path) -> None:
    make("--out", str(tmp_path / "new" / "directory"))
    certificate = load(tmp_path / "new" / "directory" / "cert.pem")
    key = load_pem_private_key((tmp_path / "new" / "directory" / "key.pem").read_bytes(), None)
    public = certificate.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert isinstance(public.curve, ec.SECP256R1)
    assert key.public_key() == public
    now = dt.datetime.now(dt.UTC)
    begins, expires = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    assert expires - begins == dt.timedelta(days=13)
    assert begins < now < now + dt.timedelta(days=12, hours=22) < expires
    names = alternative_names(certificate)
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert names.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address("127.0.0.1"),
        ipaddress.ip_address("::1"),
    ]
    assert certificate.version is x509.Version.v3
    certificate.verify_directly_issued_by(certificate)


def test_it_prints_the_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("--out", str(tmp_path))
    output = capsys.readouterr().out
    der = ssl.PEM_cert_to_DER_cert((tmp_path / "cert.pem").read_text())
    digest = hashlib.sha256(der).digest()
    assert f"SHA-256      {':'.join(f'{byte:02X}' for byte in digest)}\n" in output
    assert f"in base64    {base64.b64encode(digest).decode()}\n" in output
    assert str(tmp_path / "cert.pem") in output
    assert str(tmp_path / "key.pem") in output


def test_only_the_user_can_read_the_key(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        make("--out", str(tmp_path))
    finally:
        os.umask(umask)
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cert.pem", "key.pem"]


@pytest.mark.parametrize("there", ["cert.pem", "key.pem"])
def test_nothing_is_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], there: str
) -> None:
    path = tmp_path / there
    path.write_text("precious")
    path.chmod(0o644)
    message = fails(capsys, "cert", "--out", str(tmp_path))
    assert message == f"{path} exists already; --force overwrites it"
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]
    make("--out", str(tmp_path), "--force")
    assert load(tmp_path / "cert.pem")
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600


def test_a_dangling_link_is_not_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key.pem").symlink_to(tmp_path / "elsewhere")
    fails(capsys, "cert", "--out", str(tmp_path))
    make("--out", str(tmp_path), "--force")
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path / "key.pem").is_symlink()


def test_other_names_and_hosts(tmp_path: Path) -> None:
    hosts = ["--host", "dev.example.com", "--host", "10.1.2.3", "--host", "fe80::1"]
    hosts += ["--host", "*.example.com", "--host", "bücher.example", "--host", "localhost"]
    make("--out", str(tmp_path), "--certfile", "a.crt", "--keyfile", "a.key", *hosts)
    names = alternative_names(load(tmp_path / "a.crt"))
    assert names.get_values_for_type(x509.DNSName) == [
        "localhost",
        "dev.example.com",
        "*.example.com",
        "xn--bcher-kva.example",
    ]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == [
        "127.0.0.1",
        "::1",
        "10.1.2.3",
        "fe80::1",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.crt", "a.key"]


@pytest.mark.parametrize("host", ["not a host", "", "a\nb", "a..b", "x" * 70, "::1::"])
def test_what_is_no_host(tmp_path: Path, capsys: pytest.CaptureFixture[str], host: str) -> None:
    message = fails(capsys, "cert", "--out", str(tmp_path / "new"), "--host", host)
    assert "neither a host name nor an IP address" in message
    assert not (tmp_path / "new").exists()


def test_a_place_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    message = fails(capsys, "cert", "--out", str(tmp_path / "file" / "below"))
    assert "Not a directory" in message
    message = fails(capsys, "cert", "--out", str(tmp_path), "--keyfile", "no/such/key.pem")
    assert "No such file or directory" in message
    assert not (tmp_path / "cert.pem").exists()


def test_both_in_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(
        capsys, "cert", "--out", str(tmp_path), "--certfile", "x", "--keyfile", "x", code=2
    )
    assert "must be different" in message


def test_it_goes_where_it_is_told_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cert.pem", "key.pem"]
