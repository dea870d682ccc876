"""Attacks on servers and clients through the public interface."""
