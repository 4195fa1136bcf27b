"""What can be asked for: base models, fine-tuned models, safety methods."""
