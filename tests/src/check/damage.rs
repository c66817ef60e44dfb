//! Media damage chosen by a test, and what must follow from it.
