"""The report page of training runs."""
