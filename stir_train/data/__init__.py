"""Problems in, grades out: sources, splits, prompts, graders, and where a token stream can be steered.

To add a grader, write its function in `grading` and its name in ``config/inputs.py``; a public task is an entry of
``config/tasks.py``. A user's own grader or loader needs neither (``docs/extending.md``).
"""
