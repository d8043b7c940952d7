"""Correspondences between feature maps of two images."""
