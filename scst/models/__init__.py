"""The captioning model: loading and quantisation, prompts, attention masks, and the forward passes.

What differs between families of models is in ``families``.
What is trained beside the frozen weights is in ``scst.adapters``.
"""
