"""Autobahn's conformance cases, run against our server and our client; `README.md` says how."""
