"""Evaluate, predict, inspect: ``python eval.py run=<run folder>`` (options: conf/eval.yaml)."""

import sys

from gate_lightning.utils.signals import run_command

if __name__ == "__main__":
    sys.exit(run_command("gate_lightning.engine.cli", "eval_main"))
