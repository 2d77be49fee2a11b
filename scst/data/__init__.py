"""From a dataset name to checked splits of images and their reference captions.

The modules, in the order a dataset passes through them:

- ``sources``: every accepted form (RISC folder, parquet, saved to disk, hub id, embedded scenes) becomes
  rows.
- ``columns``: the columns of such a row; ``risc``: the RISC folder form; ``images``: bytes, hash, decoding
  check.
- ``splits``: the dataset's own splits or seeded fractions, and the leakage check.
- ``validate``: examples that cannot be trained on, found before a model is loaded.
- ``loading``: all of the above behind ``load_splits``.
- ``supervision``: which caption of an image is trained on.
- ``selection``: one caption chosen once, by rule or score.
- ``preview``: what the model will see, decoded back from token ids.
- ``collate``: rows to batches.
- ``pictures``: image files and folders named on a command line.
- Preparing a dataset: ``streams`` reads rows in order, ``inspect`` checks them, ``cleaning`` and ``synonyms``
  mend captions, ``prepare`` ties these together, ``writers`` writes; ``facts``, ``report``, ``report_page``
  and ``charts`` say what there was.
- ``scenes``: the embedded world that needs no download.

Nothing here but ``collate`` imports torch. Import from the modules: this file stays empty so that each costs
only itself.
"""
