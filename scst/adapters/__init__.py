"""Trainable parts beside a frozen model: LoRA, prompt tuning, prefix tuning, bottlenecks.

``kinds`` describes a new adapter and needs no torch, ``new_adapter`` adds it to a model, ``loading`` loads a
saved one, ``snapshot`` keeps a copy of its weights, ``merging`` writes it into the base model. How adapters
are trained does not belong here.
"""
