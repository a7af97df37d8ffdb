"""Find, steer and measure emotion in language models."""

__version__ = "0.1.0"
