"""The page of ``tool=app``: matches of a clicked point in several images."""
