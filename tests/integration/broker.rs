//! Tests of broker.
