//! Fuzzing of announcement.
