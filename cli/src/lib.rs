//! The command line of Esker.
