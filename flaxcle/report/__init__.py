"""One HTML page that says what changed, whether it is safe, and what to try next."""

from flaxcle.report.write import report as report
