"""Edits: streamed from safetensors to safetensors, one matrix in memory at a time.

(What is trained has to be in memory: ``invarlock.run.train`` gives its values to ``apply``.)

``specs`` says what can be asked for, ``scope`` which tensors it means, one module per edit
holds its arithmetic, ``stream`` writes the checkpoint and ``apply`` joins them.
"""
