"""Loading models, chat template to ids, batches, generation, adapters: what training and evaluation share."""
