"""From a policy and a dataset to captions, scores with intervals and signatures, and a report.

``decoding`` and ``captioning`` write the captions, ``metrics`` scores them with ``scst.metrics.suite`` and
compares two systems, ``caption_files`` and ``score_files`` do so for captions that are there already,
``report`` and ``compare`` show the results, ``evaluate`` does all of it.
"""
