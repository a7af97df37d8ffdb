"""Hydra configuration groups, shipped with the package. The schema of their keys is emosteer/config.py."""
