"""Write what other tools load, and prove in a fresh process that it does something."""
