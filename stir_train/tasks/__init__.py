"""The embedded synthetic tasks, and the tiny models that were trained on them.

A family makes problems with exact answers and solutions of mixed quality; `tiny_model` is the recipe of the shipped
weights. To add a family, write it as `problem.TaskFamily` in a module here, and its line in `families`.
"""
