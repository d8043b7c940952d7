"""Data sets of pairs of images whose geometry is known."""
