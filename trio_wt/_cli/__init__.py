"""The commands of ``trio-wt``."""
