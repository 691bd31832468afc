"""Agartha: the whole path to a reasoning model, small enough to own and open to its last rule."""

__version__ = "0.2.0"
