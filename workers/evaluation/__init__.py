"""Measuring a model against its base: prompts, judges, intervals, report. Pure: a model comes in as `TextModel`."""
