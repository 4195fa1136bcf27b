"""Fine-tuning jobs, their events and checkpoints."""
