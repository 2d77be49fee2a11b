"""Stage 1: supervised training of a new adapter on human captions.

Here: the trainer on top of TRL's, and :func:`scst.sft.finetune.finetune`. Not here: how rows become batches
(``scst.data.collate``), checkpoints and validation (``scst.training``).
"""
