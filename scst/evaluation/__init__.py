"""From a policy and a dataset to captions, scores with intervals and signatures, and a report.

``decoding`` and ``captioning`` write the captions, ``metrics`` (with ``java`` and ``meteor``) scores them,
``text_stats`` counts what can go wrong in their text, ``report`` and ``compare`` show them, ``evaluate`` does
all of it.
"""
