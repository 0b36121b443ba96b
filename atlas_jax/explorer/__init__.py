"""A run to work with: a page on this machine that searches concepts, steers, and reads texts token by token."""

from atlas_jax.explorer._explorer import Explorer as Explorer
from atlas_jax.explorer._server import make_app as make_app, serve as serve
