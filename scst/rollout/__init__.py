"""Sampling captions: the decode loop, its state and cache, and the sampling distribution.

Every image is prefilled once; greedy and sampled rows are decoded together. Scoring what was sampled is
``scst.scoring``; rewards and losses do not belong here.
"""
