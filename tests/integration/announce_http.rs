//! Tests of announce_http.
