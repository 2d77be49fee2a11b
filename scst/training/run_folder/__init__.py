"""The output folder of a run: who may write it, what lies in it, what is resumed from it.

Not here: what writes and restores the state of a trainer (``scst.training.checkpointer``).
"""
