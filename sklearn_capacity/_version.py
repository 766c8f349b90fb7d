"""The version of the package, for itself and for its metadata."""

__all__ = ["__version__"]

__version__ = "0.1.0"
