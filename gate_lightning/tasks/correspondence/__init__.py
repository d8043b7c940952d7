"""Tasks on pairs of images."""
