"""Measures of content shift: features, images and maps in, statistics of every image out."""
