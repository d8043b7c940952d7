"""Command lines: composed configuration, keys that are read, renamed and hinted at, help, processes."""
