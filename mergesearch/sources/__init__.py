"""Where weights come from: finding, opening, checking and reading checkpoints, and dividing them into groups.

The way of a source: `locate` turns what the study file says into a folder, `Checkpoint.open` reads its
headers, `read_layout` derives the model's parts from its config, `check_sources` compares all sources and
lists every mismatch, and only then `read_tensors` maps weights into memory.
"""
