//! The command line of Esker.

fn main() {}
