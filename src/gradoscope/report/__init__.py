"""What people look at: terminal, page, figures and the published schema. Nothing here computes evidence.

Each face is a module of its own, imported when it is used, so that the command line starts fast: `terminal` (rich), `html` (one
offline page), `figures` (plotly), `static` (matplotlib) and `schema`.
"""
