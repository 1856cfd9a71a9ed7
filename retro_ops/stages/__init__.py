"""One module per stage: it reads inputs, calls the modules that do the work, writes outputs and, last, a report.

Each module has ``add_arguments`` (its paths; its parameters follow from their table) and
``run(arguments, parameters)``. Heavy libraries are imported inside ``run``, so that a stage whose output exists ends
within a fraction of a second. Stages never import each other.
"""
