"""Names that moved to `itwinai.reporting.formatting`, until the benchmark imports them from there."""

from itwinai.reporting.formatting import joined as joined
from itwinai.reporting.formatting import short_names as short_names
from itwinai.reporting.formatting import shortened as shortened
