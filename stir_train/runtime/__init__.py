"""What runs stages: the run and its lazily loaded resources, the driver, the chunk scheduler.

A stage gets a `RunContext` from the driver and makes its files through the chunk scheduler.
To run something new, declare a stage in ``config/pipeline.py``; nothing here names one.
"""
