"""Held-out comparison: metrics, paired intervals, the choice among what was tried, tables and pages.

Functions of graded rollouts, which run nothing. To add a figure of a method, compute it in `metrics`, keep it in
``types/results.py`` and show it in `tables` and `report`.
"""
