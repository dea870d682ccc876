"""A benchmark of one message to many WebSockets, run as ``python -m tests.bench.fanout``; see README.md."""
