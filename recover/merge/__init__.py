"""From inputs to one file: the plan is pure data, the execution follows it tile by tile."""
