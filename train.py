"""Train: ``python train.py dataset=… techniques=…`` (options: conf/train.yaml)."""

import sys

from gate_lightning.engine.cli import train_main

if __name__ == "__main__":
    sys.exit(train_main())
