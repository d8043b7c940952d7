"""Live objects of a configuration: data, features, networks, trainer."""
