//! Fuzzing of osb_body.
