"""A model checked in a minute, part by part: `emosteer model=... probe=true`."""

from emosteer.probe.checks import Finding, probe

__all__ = ["Finding", "probe"]
