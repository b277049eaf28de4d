"""The one place where Gantry's own version is written."""

__version__ = "0.1.0"
