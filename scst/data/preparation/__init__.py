"""Prepare a dataset for training: inspect it, clean captions, choose one, split, write a new dataset.

What does not belong here: the page of the report (``scst.report.data_page``) and the record of the run, which
the caller adds; loading data for training (``scst.data.load_splits``).

preparation.py       ``Preparation``: all of it
streams.py           rows one after the other, of a dataset of any size
inspection.py        one pass over the rows: what is kept, what cannot be used
cleaning.py          cleaning of captions as a list of steps; synonyms.py: one of them
selection.py         the caption of an image that comes first; caption_scorers.py: what scores captions
prepared_dataset.py  split, clean and choose; writers.py: the new dataset on disk
statistics.py        counts of captions and images; data_report.py: all numbers of the report
"""
