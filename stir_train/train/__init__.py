"""The one fit loop of everything that learns here: schedules, early stopping, checkpoints.

`loop` takes batches and a loss as functions and runs the steps; `checkpoint` is the file it goes on from. To train
something new, call `loop.fit` with its batches and its loss; nothing here names a model.
"""
