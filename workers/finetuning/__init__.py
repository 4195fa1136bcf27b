"""Fine-tuning with safety-preserving methods: values in, values out; usable without the service.

`run.finetune` is the entry, `loop` the only training loop, `method.Method` the hooks, `methods/` one file each.
"""
