"""What these modules rely on in aioquic, checked when they are imported."""

from __future__ import annotations

import inspect
import re
from typing import Any, Final

import aioquic
from aioquic import _crypto
from aioquic.quic.connection import QuicConnection

__all__ = ["check_aioquic"]

_SIGNATURES: Final = {
    "_add_network_path": "self network_path",
    "_close_end": "self",
    "_confirm_handshake": "self",
    "_connect": "self now",
    "_handle_ack_frame": "self context frame_type buf",
    "_handle_crypto_frame": "self context frame_type buf",
    "_handle_new_connection_id_frame": "self context frame_type buf",
    "_handle_padding_frame": "self context frame_type buf",
    "_handle_reset_stream_frame": "self context frame_type buf",
    "_handle_stop_sending_frame": "self context frame_type buf",
    "_handle_stream_frame": "self context frame_type buf",
    "_initialize": "self peer_cid",
    "_on_max_stream_data_delivery": "self delivery stream",
    "_parse_transport_parameters": "self data from_session_ticket",
    "_replenish_connection_ids": "self",
    "_serialize_transport_parameters": "self",
    "_update_traffic_key": "self direction epoch cipher_suite secret",
    "_flush_builder": "self builder network_path peer_cid now",
    "_write_connection_limits": "self builder space",
    "_write_reset_stream_frame": "self builder stream",
    "_write_stop_sending_frame": "self builder stream",
    "_write_stream_frame": "self builder space stream max_offset",
    "_write_stream_limits": "self builder space stream",
}

# Lines of methods that ours take part in.
_SOURCES: Final = {
    "_write_application": (
        "for stream in self._streams.values():",
        "for stream in self._streams_queue:",
        "self._streams_queue.extend(sent)",
        "self._stream_limit(stream.stream_id).value += 1",
        "self._write_stream_limits(",
    ),
    "_write_connection_limits": ("max_data.value *= 2", "limit.value != limit.sent"),
    "_payload_received": ("self.__frame_handlers[frame_type]",),
    "_handle_path_response_frame": ("self._use_reserved_peer_cid(network_path)",),
    "handle_timer": ("self._close_event = events.ConnectionTerminated(",),
}

# Of packet protection, what `keys.PacketKeys` takes over.
_PROTECTION: Final = {
    _crypto.AEAD: (
        "self._aead.encrypt(",
        "self._aead.decrypt(",
        '(self._iv ^ packet_number).to_bytes(AEAD_NONCE_LENGTH, "big")',
    ),
    _crypto.HeaderProtection: (
        "if self._is_chacha20:",
        "return self._encryptor.update(sample)",
    ),
}


def check_aioquic(
    connection: type[Any] = QuicConnection, version: str = aioquic.__version__
) -> None:
    """Make sure that aioquic still is what these modules were written for.

    Raises:
        ImportError: it is not.
    """
    release = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if not (1, 7, 2) <= release < (1, 8):
        raise ImportError(f"trio_wt needs aioquic 1.7.2 or a later 1.7, and found {version}")
    for name, parameters in _SIGNATURES.items():
        method = getattr(connection, name, None)
        if method is None or " ".join(inspect.signature(method).parameters) != parameters:
            raise _changed(name, version)
    sources = [(name, getattr(connection, name, None), lines) for name, lines in _SOURCES.items()]
    sources += [(owner.__name__, owner, lines) for owner, lines in _PROTECTION.items()]
    for name, thing, lines in sources:
        try:
            source = inspect.getsource(thing)  # type: ignore[arg-type]
        except (OSError, TypeError) as exc:
            raise _changed(name, version) from exc
        if not all(line in source for line in lines):
            raise _changed(name, version)


def _changed(name: str, version: str) -> ImportError:
    return ImportError(f"aioquic {version} has another {name}; trio_wt cannot use it")


check_aioquic()
