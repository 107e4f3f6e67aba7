"""Python imports this at its start, so the tests' child processes have no network either."""

import network_guard

network_guard.install()
