"""The embedded world: painted scenes with captions, and the tiny model pretrained on them.

It makes the quickstart and the tests run without a download. Nothing else of the package imports it at the
top of a module.
"""
