"""The version of this package, alone: every floor may say it without importing the others."""

__version__ = "0.2.0"
