"""Prompt searches that are stored: settings, what they may take, the run, and templates put to the test."""
