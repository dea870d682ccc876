"""A benchmark of WebTransport libraries, run as ``python -m tests.bench.webtransport``; see README.md."""
