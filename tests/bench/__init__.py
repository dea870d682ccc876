"""An echo benchmark of WebSocket servers, run as ``python -m tests.bench``; see README.md."""
