"""A name that moved to `itwinai.reporting.plotting`, until the benchmark imports it from there."""

from itwinai.reporting.plotting import label_text

lettering = label_text
