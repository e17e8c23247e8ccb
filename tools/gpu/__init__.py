"""One command for a GPU machine: what has to be right there, how fast it is, and the packaged model trained.

    run (bash)  ->  __main__  ->  supervisor  ->  worker (another process)  ->  the parts
                                      |
                                   report.json and report.md, after every row

The supervisor needs Python alone. A part that fails, hangs or takes its process down costs its own rows only.
"""
