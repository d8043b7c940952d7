"""Jobs of the command lines and of the library: training, evaluation, re-splits, tools."""
