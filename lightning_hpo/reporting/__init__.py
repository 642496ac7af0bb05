"""Everything that people see of a run: console, report, result, the files of the best trial."""
