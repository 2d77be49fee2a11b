"""Where a reward function runs, how long it may take, and what its answer must be.

Not here: what a reward computes, and how values are weighted and added (``rewards.mixture``).
"""
