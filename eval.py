"""Evaluate, predict, inspect: ``python eval.py run=<run folder>`` (options: conf/eval.yaml)."""

import sys

from gate_lightning.engine.cli import eval_main

if __name__ == "__main__":
    sys.exit(eval_main())
