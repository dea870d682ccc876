"""A benchmark of QUIC libraries, run as ``python -m tests.bench.quic``; see ../README.md."""
