"""From a dataset name to checked splits of images and their reference captions.

The modules, in the order a dataset passes through them:

- ``sources``: every accepted form (RISC folder, parquet, saved to disk, hub id, embedded scenes) becomes
  rows.
- ``columns``: the columns of such a row; ``risc``: the RISC folder form; ``images``: bytes, hash, decoding
  check.
- ``splits``: the dataset's own splits or seeded fractions, and the leakage check.
- ``validate``: examples that cannot be trained on, found before a model is loaded.
- ``load_splits``: all of the above behind one function of that name.
- ``supervision``: which caption of an image is trained on.
- ``preview``: what the model will see, decoded back from token ids.
- ``collate``: rows to batches.
- ``pictures``: image files and folders named on a command line.
- ``preparation``: inspecting, cleaning and writing a dataset before any training.
- ``scenes``: the embedded world that needs no download.

Models and what they see (prompt format, masks) do not belong here. Nothing but ``collate`` and the model
builder of ``scenes`` imports torch, so import from the modules: importing one does not load the others.
"""
