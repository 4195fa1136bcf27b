"""What runs the jobs: libraries for training and evaluation, and the runtime that supervises them."""
