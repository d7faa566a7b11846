"""The feeder: feature views over tables, kept fresh from the log in a store that a stock Feast SDK reads."""
