"""The run folder: its files, its lock, what a run depends on."""
