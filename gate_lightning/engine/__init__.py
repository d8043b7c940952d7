"""The composition root: Hydra configuration → components → run."""
