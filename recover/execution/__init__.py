"""Carrying out a plan: tiles for threads, output files that appear complete, a journal."""
