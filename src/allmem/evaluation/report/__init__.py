"""Reports of runs: Markdown, a page that stands alone, plots, and every number as JSON.

A report is made from stored rows alone; the same rows give the same bytes.
"""

from allmem.evaluation.report.making import Written, make_report

__all__ = ["Written", "make_report"]
