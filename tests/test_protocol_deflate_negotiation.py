"""permessage-deflate: what two sides agree on (RFC 7692 section 7), and that they keep to it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from tests.deflate_peers import (
    OPEN,
    Deflater,
    Inflater,
    decode,
    encode,
    far_back,
    negotiate,
    noise,
)
from trio_wt._protocol.deflate import Deflate
from trio_wt._protocol.extensions import (
    ExtensionError,
    Parameters,
    agree_as_client,
    agree_as_server,
    format_extension,
)

# ---- negotiation


def test_the_defaults_cost_little_memory() -> None:
    assert Deflate() == Deflate(
        client_max_window_bits=12,
        server_max_window_bits=12,
        client_no_context_takeover=False,
        server_no_context_takeover=False,
        threshold=64,
        level=-1,
        memory_level=5,
    )


@pytest.mark.parametrize(
    ("configuration", "offer"),
    [
        (Deflate(), "server_max_window_bits=12; client_max_window_bits=12"),
        (OPEN, "client_max_window_bits"),
        (
            Deflate(
                client_max_window_bits=8,
                server_max_window_bits=15,
                client_no_context_takeover=True,
            ),
            "client_no_context_takeover; client_max_window_bits=8",
        ),
        (
            Deflate(server_no_context_takeover=True, server_max_window_bits=8),
            "server_no_context_takeover; server_max_window_bits=8; client_max_window_bits=12",
        ),
    ],
)
def test_what_a_client_offers(configuration: Deflate, offer: str) -> None:
    texts = [format_extension("x", parameters) for parameters in configuration.offer()]
    assert texts == [f"x; {offer}"]


NINE = replace(OPEN, client_max_window_bits=9)


def accepted(offer: str, server: Deflate) -> str | None:
    codecs = agree_as_server(offer, [server])
    return format_extension(codecs[0].name, codecs[0].response) if codecs else None


@pytest.mark.parametrize(
    ("offer", "server", "response"),
    [
        ("", OPEN, ""),
        ("", Deflate(), "; server_max_window_bits=12"),
        ("; client_max_window_bits", OPEN, ""),
        ("; client_max_window_bits", NINE, "; client_max_window_bits=9"),
        ("; client_max_window_bits=10", OPEN, "; client_max_window_bits=10"),
        ("; client_max_window_bits=15", NINE, "; client_max_window_bits=9"),
        ("; client_max_window_bits=8", NINE, "; client_max_window_bits=8"),
        ("; server_max_window_bits=9", Deflate(), "; server_max_window_bits=9"),
        ("; server_max_window_bits=8", OPEN, "; server_max_window_bits=8"),
        ("; server_max_window_bits=15", OPEN, ""),
        ("; server_no_context_takeover", OPEN, "; server_no_context_takeover"),
        ("; client_no_context_takeover", OPEN, "; client_no_context_takeover"),
        ("", replace(OPEN, server_no_context_takeover=True), "; server_no_context_takeover"),
        ("", replace(OPEN, client_no_context_takeover=True), "; client_no_context_takeover"),
        ('; server_max_window_bits="10"', OPEN, "; server_max_window_bits=10"),
    ],
)  # fmt: skip
def test_what_a_server_answers(offer: str, server: Deflate, response: str) -> None:
    assert accepted("permessage-deflate" + offer, server) == "permessage-deflate" + response


BAD = [
    "unknown",
    "unknown=1",
    "server_no_context_takeover=1",
    "client_no_context_takeover=true",
    "server_max_window_bits",
    "server_max_window_bits=7",
    "server_max_window_bits=16",
    "server_max_window_bits=08",
    "server_max_window_bits=+9",
    "server_max_window_bits=x",
    "client_max_window_bits=7",
    "client_max_window_bits=16",
    "client_max_window_bits=010",
    "client_max_window_bits=9a",
    "server_no_context_takeover; server_no_context_takeover",
    "client_no_context_takeover; client_no_context_takeover",
    "server_max_window_bits=9; server_max_window_bits=9",
    "client_max_window_bits=9; client_max_window_bits=10",
]


@pytest.mark.parametrize("parameters", [*BAD, "client_max_window_bits; client_max_window_bits"])
def test_a_server_declines_what_it_cannot_accept_and_takes_the_next(parameters: str) -> None:
    offer = f"permessage-deflate; {parameters}"
    assert accepted(offer, OPEN) is None
    assert accepted(f"{offer}, permessage-deflate; client_max_window_bits=9", OPEN) == (
        "permessage-deflate; client_max_window_bits=9"
    )


@pytest.mark.parametrize("parameters", [*BAD, "client_max_window_bits"])
def test_a_client_refuses_the_same_in_a_response(parameters: str) -> None:
    with pytest.raises(ExtensionError, match="parameter"):
        agree_as_client(f"permessage-deflate; {parameters}", [OPEN])


@pytest.mark.parametrize(
    ("client", "response", "why"),
    [
        (Deflate(), "", "larger window"),
        (Deflate(), "; server_max_window_bits=13", "larger window"),
        (
            Deflate(server_no_context_takeover=True),
            "; server_max_window_bits=12",
            "ignores server_no_context_takeover",
        ),
    ],
)
def test_a_response_may_not_loosen_what_was_asked_for(
    client: Deflate, response: str, why: str
) -> None:
    with pytest.raises(ExtensionError, match=why):
        agree_as_client("permessage-deflate" + response, [client])


@pytest.mark.parametrize(
    "response",
    [
        "permessage-deflate",
        "permessage-deflate; server_max_window_bits=8; client_max_window_bits=8",
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
    ],
)
def test_a_response_may_tighten_it(response: str) -> None:
    (codec,) = agree_as_client(response, [OPEN])
    assert format_extension(codec.name, codec.response) == response


@pytest.mark.parametrize(
    "wrong",
    [
        {"client_max_window_bits": 7},
        {"client_max_window_bits": 16},
        {"server_max_window_bits": 7},
        {"server_max_window_bits": 16},
        {"level": -2},
        {"level": 10},
        {"memory_level": 0},
        {"memory_level": 10},
        {"threshold": -1},
    ],
)
def test_a_configuration_out_of_range_is_refused(wrong: dict[str, int]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        Deflate(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("level", range(-1, 10))
@pytest.mark.parametrize("memory_level", [1, 9])
def test_every_level_works(level: int, memory_level: int) -> None:
    client, server = negotiate(Deflate(level=level, memory_level=memory_level), OPEN)
    data = b"level " * 500
    assert decode(server, b"".join(encode(client, data))) == data


# ---- every pair of configurations


def limited(side: str, bits: int, *, forget: bool = False) -> Deflate:
    """Free of limits, but for those of one side."""
    if side == "client":
        return replace(OPEN, client_max_window_bits=bits, client_no_context_takeover=forget)
    return replace(OPEN, server_max_window_bits=bits, server_no_context_takeover=forget)


@pytest.mark.parametrize("from_client", [True, False])
def test_every_pair_of_configurations_agrees_on_what_both_can(from_client: bool) -> None:
    side = "client" if from_client else "server"
    values = list(itertools.product(range(8, 16), range(8, 16), [False, True], [False, True]))
    for ours, theirs, forget, insist in values:
        client, server = limited(side, ours, forget=forget), limited(side, theirs, forget=insist)
        at_client, at_server = negotiate(client, server)
        sender, receiver = (at_client, at_server) if from_client else (at_server, at_client)
        bits, takeover = min(ours, theirs), not (forget or insist)
        agreed = dict(at_server.response)
        assert int(agreed.get(f"{side}_max_window_bits") or 15) == bits
        assert (f"{side}_no_context_takeover" not in agreed) is takeover
        message = b"again and again " * 8
        if bits == 8:  # zlib cannot compress with it
            assert sender.encode(message, first=True, final=True, wanted=True) == (message, False)
            continue
        first, second = encode(sender, message)[0], encode(sender, message)[0]
        assert (len(second) < len(first)) is takeover
        if not takeover:
            assert second == first
        peer = Inflater(bits, takeover=takeover)
        assert peer.message(first) == peer.message(second) == message
        assert decode(receiver, first, piece=5) == decode(receiver, second, piece=5) == message


@pytest.mark.parametrize("bits", range(9, 16))
@pytest.mark.parametrize("from_client", [True, False])
def test_the_window_agreed_on_is_kept_by_the_sender(bits: int, from_client: bool) -> None:
    side = "client" if from_client else "server"
    for asking, allowing in ((bits, 15), (15, bits)):
        codecs = negotiate(limited(side, asking), limited(side, allowing))
        sender = codecs[0] if from_client else codecs[1]
        data = far_back(bits)
        assert Inflater(bits, takeover=True).message(encode(sender, data)[0]) == data


@pytest.mark.parametrize("bits", range(9, 16))
@pytest.mark.parametrize("from_client", [True, False])
def test_the_whole_window_may_be_used_by_the_peer(bits: int, from_client: bool) -> None:
    side = "client" if from_client else "server"
    codecs = negotiate(limited(side, bits), OPEN)
    receiver = codecs[1] if from_client else codecs[0]
    peer = Deflater(bits, takeover=True)
    block = noise(2**bits - 300)
    first, second = peer.message(block), peer.message(block)
    assert len(second) < len(block) / 4, "the peer looks back that far"
    assert decode(receiver, first, piece=200) == block
    assert decode(receiver, second, piece=1) == block


def test_a_server_that_was_not_told_of_a_limit_takes_any_window() -> None:
    # RFC 7692 section 7.1.2.2: without the parameter in the offer none may be in the response.
    (codec,) = agree_as_server("permessage-deflate", [Deflate(client_max_window_bits=9)])
    assert "client_max_window_bits" not in dict(codec.response)
    peer, block = Deflater(15, takeover=True), noise(30_000)
    assert decode(codec, peer.message(block) + b"") == block
    assert decode(codec, peer.message(block), piece=1) == block


def test_a_client_keeps_its_own_limit_whatever_the_server_allows() -> None:
    (codec,) = agree_as_client(
        "permessage-deflate; client_max_window_bits=15",
        [NINE],
    )
    data = far_back(9)
    assert Inflater(9, takeover=True).message(encode(codec, data)[0]) == data


@pytest.mark.parametrize("takeover", [True, False])
def test_a_peer_without_takeover_is_read_either_way(takeover: bool) -> None:
    configuration = replace(OPEN, client_no_context_takeover=not takeover)
    _, server = negotiate(configuration, OPEN)
    peer = Deflater(15, takeover=takeover)
    for number in range(3):
        message = b"message %d " % number * 30
        assert decode(server, peer.message(message)) == message


@pytest.mark.parametrize("from_client", [True, False])
def test_a_peer_that_takes_over_its_context_against_the_agreement_is_found_out(
    from_client: bool,
) -> None:
    side = "client" if from_client else "server"
    at_client, at_server = negotiate(limited(side, 15, forget=True), OPEN)
    receiver = at_server if from_client else at_client
    peer, message = Deflater(15, takeover=True), noise(200)
    assert decode(receiver, peer.message(message)) == message
    with pytest.raises(ExtensionError, match="invalid compressed data"):
        decode(receiver, peer.message(message))


def test_parameters_that_were_agreed_on_can_be_seen() -> None:
    _, server = negotiate(Deflate(client_max_window_bits=9), Deflate())
    agreed: Parameters = [("server_max_window_bits", "12"), ("client_max_window_bits", "9")]
    assert list(server.response) == agreed
    assert server.name == "permessage-deflate"
    assert server.rsv == 0x40
