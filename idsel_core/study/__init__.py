"""Everything that measures: data sets, evaluation, times, costs, results, figures and sweeps."""
