"""How bytes move: sockets, TLS, proxies, and the service nursery."""
