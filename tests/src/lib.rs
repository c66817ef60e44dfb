//! The simulator, its oracles, and tests against the real daemon.
