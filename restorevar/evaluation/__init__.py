"""Scores that state how they were made: protocols, metrics, baselines, statistics and the report."""
