//! Fuzzing of config.
