"""Side-by-side measurements: the usual way and ours, same model, same inputs, one run."""
