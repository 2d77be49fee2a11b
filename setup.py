"""Packages of a wheel; everything else is in pyproject.toml.

`recipes/` lies beside `scst/` in a clone and becomes `scst/recipes` in a wheel; pyproject.toml cannot say so
together with `packages.find`.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["scst", "scst.*", "rewards", "rewards.*"]), "scst.recipes"],
    package_dir={"scst.recipes": "recipes"},
    package_data={
        "scst": ["assets/**/*", "py.typed"],
        "rewards": ["py.typed"],
        "scst.recipes": ["**/*.yaml", "*.md", "**/*.md"],
    },
)
