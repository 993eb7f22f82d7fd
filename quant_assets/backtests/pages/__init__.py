"""HTML pages of the backtests: a tear sheet per strategy, the comparison, the index. Interactive, offline, pure.

Belongs here: how results look on a page. Does not belong here: computing them, and the images in the Dagster UI
(`quant_assets/backtests/plots.py`).

`sheet` (what a page is made from) <- `figures` and the four `*_figures` (plotly) <- `page` (HTML pieces, `glossary` of the
statistics) <- `tear_sheet`, `comparison`, `report_index`. Imports go in this direction only.
"""
