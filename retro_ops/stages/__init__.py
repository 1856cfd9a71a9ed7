"""One module a stage: a thin edge that reads, calls the core, writes, and reports last.

Each module has ``HELP``, ``PARAMETERS`` (the run parameters it takes as flags), ``add_arguments``
(its paths) and ``run(arguments, parameters)``. Heavy libraries are imported inside ``run``, so that
a stage that finds itself done costs a fraction of a second. Stages never import each other.
"""
