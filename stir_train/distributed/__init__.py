"""The processes of a launch: who they are, who works on what, and how they train and decode together.

`launch` reads the environment once, `world` is what ranks say to each other, `work_queue` and `leases` share out work.
To add a launcher, teach `launch` its variables. Only `deepspeed_api` imports DeepSpeed.
"""
