"""Kinds of result objects that tell the result, for whoever makes them and whoever sends them."""

from storage.results import REPORT_KIND

# The report, and the same in the lower classes of `report.fallback`: the first that a destination takes is sent.
REPORT_KINDS = (REPORT_KIND, "report-comprehensive", "report-enhanced")
SUMMARY_KIND = "summary"
