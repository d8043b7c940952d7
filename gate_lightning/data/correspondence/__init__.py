"""Data sets of image pairs with keypoints that correspond."""
