"""Ranking with language models: tasks, prompts and their templates, rankers, and what they are measured by."""
