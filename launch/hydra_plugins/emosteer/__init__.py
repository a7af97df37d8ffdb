"""Hydra plugins of emosteer: launchers that pack a sweep's cells into workers, and a sweeper that composes fast."""
