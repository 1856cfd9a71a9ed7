"""Pure functions: arrays and iterators in, arrays out. No paths, no clock, no network."""
