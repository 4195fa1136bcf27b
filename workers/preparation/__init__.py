"""Preparing a base model once: align, merge, safety memory, teacher states, Gram matrix, baseline results."""
