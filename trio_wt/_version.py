"""The version, where packaging and the User-Agent header find it."""

__version__ = "0.1.0"
