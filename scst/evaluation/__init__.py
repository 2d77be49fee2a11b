"""From a policy and a dataset to captions, scores with intervals and signatures, and a report.

What does not belong here: metrics themselves and their statistics (``scst.metrics``), the shell of pages and
their charts (``scst.report``), sampling for training (``scst.rollout``).

decoding.py            decoding presets
captioning.py          captions of images
evaluation.py          ``Evaluation``: caption a dataset, score, write predictions, report and metrics
evaluation_page.py     the report; training_section.py, training_log.py: its part about training
samples.py             greedy captions beside sampled ones, for the report
comparison.py          this evaluation against an earlier one, for the report
caption_files.py       caption files of other programs, read and paired with references
score_files.py         scores of such files; a paired test of two of them
side_by_side.py        any number of finished evaluations in one table on the screen, without a test
"""
