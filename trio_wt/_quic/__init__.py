"""QUIC connections, client and server."""
