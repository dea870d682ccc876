"""WebSocket connections, client and server."""
