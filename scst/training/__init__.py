"""What both trainers share: hooks, the parts they forward to, and a run around them.

Here: the class between this project's trainers and transformers' (``hooks``), the parts that it owns
(``checkpointer``, ``non_finite``, ``step_metrics``, ``micro_batcher``, ``validation``), the monitors,
signals, the output folder and its lock (``output_folder``, ``run_lock``), the run from its first step to its
record, and the plan. Not here: what only one stage has (``scst.sft``, ``scst.rl``), and anything that sees a
recipe (``scst.config``).
"""
