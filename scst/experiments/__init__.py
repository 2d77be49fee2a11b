"""Experiment matrices: models x prompts x decodings, trained and evaluated one after the other.

What does not belong here: recipes. What a key means and which stage has it comes in from above as
``StageKeys``. Every run is a process of its own, started with a file of keys; nothing here loads a model.

stage_keys.py      what the matrix asks about the keys of a stage
matrix_models.py   the models, grids spanned
matrix_plan.py     ``make_plan``: every run with its keys and its folder
matrix_run.py      ``run_matrix``: run what is missing, write all tables and pages
launchers.py       which programs may start the processes
runner.py          processes, signals, the lock
results.py         values per cell, means over seeds, prompt robustness
tables.py figures.py matrix_page.py   Markdown, CSV, JSON; PNG; HTML
"""
