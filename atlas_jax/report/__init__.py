"""A run to look at: one HTML page with its tables, plots and a search over its concepts."""

from atlas_jax.report._render import Report as Report, write_report as write_report
from atlas_jax.report._tables import table_csv as table_csv, table_latex as table_latex
from atlas_jax.table import table_html as table_html
