"""Point cloud registration that says when it can be trusted, and Deep Loss Convexification."""

__version__ = "0.1.0"
