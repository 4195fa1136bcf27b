"""How many tokens a training file has, and which of them are trained: no torch, no weights, no database.

The API asks this of a short-lived process before a job is there (see app.estimates.counter). It runs the code that
training runs, because a second way from text to tokens would drift from the first; and it is not work for the queue,
because an answer that waits behind hours of training helps nobody who wants to decide whether to train.
"""
