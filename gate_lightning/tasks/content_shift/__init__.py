"""Content shift of generation techniques, measured without training."""
