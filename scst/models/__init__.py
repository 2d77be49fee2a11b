"""The PaliGemma family: loading and quantisation, prompt format, attention masks, and the forward passes.

What is trained beside the frozen weights is in ``scst.adapters``.
"""
