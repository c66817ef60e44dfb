//! Benchmarks: micro-benchmarks and side-by-side runs.
