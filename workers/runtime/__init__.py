"""The one impure place of the workers: claim a row, run a library in a child process, store what came out."""
