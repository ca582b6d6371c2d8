"""The trainer: data, loop, schedules and recipes."""
