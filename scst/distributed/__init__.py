"""Several processes: what they exchange, and weights and batches that are sharded over them.

Nothing here knows captions or rewards.
"""
