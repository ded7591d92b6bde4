"""Edits: streamed from safetensors to safetensors, one matrix in memory at a time.

(What is trained has to be in memory: ``invarlock.run.train`` gives its values to ``apply``.)

``kinds`` holds the kinds of edit, each a file with its parameters and its arithmetic; ``kind`` is
what they have in common, ``specs`` parses what is asked for, ``scope`` says which tensors it means,
``stream`` writes the checkpoint and ``apply`` joins them.
"""
