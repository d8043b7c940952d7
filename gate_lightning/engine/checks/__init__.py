"""Checks of configurations and run folders before anything of them is used: types, devices, parts, paths, secrets."""
