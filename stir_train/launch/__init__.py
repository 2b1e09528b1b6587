"""Plan and submit runs on a cluster, and say where they are; nothing here imports torch.

`plan` and `estimate` say what a run would do and need, `preflight` what is wrong, `jobs` and `slurm` queue it. To add
a scheduler, write beside `slurm` what submits, asks after and cancels the same jobs.
"""
