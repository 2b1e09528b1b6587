"""What stages leave on disk, read by directory alone: rollouts, states, contrasts, trials, heads.

Names and layouts of files are known here and nowhere else; a reader is never told of the job that
made them. To add an artifact, write a module with its file name, its writer and its reader.
"""
