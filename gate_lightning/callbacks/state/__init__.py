"""Exact interruption and resume of runs: checkpoints, signals, averaged weights, export.

Why not Lightning's own (2.6):

* ``ModelCheckpoint`` writes through a temporary file in the system's folder, which is copied into place where that is
  another disk: a run that is killed leaves half a checkpoint under the final name. It restores the best score only
  into the same path: a moved run folder forgets it. Its ``last.ckpt`` of a step at which a validation is due is written
  before that validation, which a resumed trainer then skips.
* Ctrl-C ends training inside a batch, SIGTERM after one; ``save_on_exception`` then saves the middle of a batch, of an
  accumulation window or of a validation.
* A resumed trainer replays batches: see ``data/core/resume.py``.
* ``WeightAveraging`` copies the whole module, frozen backbone included, and writes it into every checkpoint: see
  ``ema.py``.
* ``CSVLogger`` deletes the metrics of the run it goes on with: see ``callbacks/loggers.py``.
"""
