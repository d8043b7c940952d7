"""Data sets of videos whose first frame is annotated."""
