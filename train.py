"""Train: ``python train.py dataset=… techniques=…`` (options: conf/train.yaml)."""

import sys

from gate_lightning.utils.signals import run_command

if __name__ == "__main__":
    sys.exit(run_command("gate_lightning.engine.cli", "train_main"))
