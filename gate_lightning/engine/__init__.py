"""The composition root: Hydra configuration → parts → run."""
