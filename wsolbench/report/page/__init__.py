"""The report page: one HTML file of records, comparisons and pictures."""
