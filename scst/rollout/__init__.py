"""Rollouts: prefill every image once, decode greedy and sampled rows together, score what was sampled."""
