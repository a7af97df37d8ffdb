"""Generation: a pure function from requests to replies, many cells' rows in one batch."""

from emosteer.engine.engine import Engine
from emosteer.engine.request import Decoding, Origin, Reply, Request, RowSeed, requests_for

__all__ = ["Decoding", "Engine", "Origin", "Reply", "Request", "RowSeed", "requests_for"]
